// Panels: how activations are cut for the kernels of linear layers and packed, and what of them a thread takes.
#pragma once
#include <algorithm>

#include "common/layout.h"
#include "cpu/kernels/isa.h"
#include "cpu/linear/plan.h"
#include "cpu/tensors.h"
#include "cpu/threads.h"
#include "cpu/workspace.h"

namespace sparseprune {

template <class Element>
Strided<const Element> strided(const Activation& x) {
  return {data_of<Element>(x.tensor), x.feature_stride, x.batch_stride};
}
template <class Element>
Strided<Element> mutable_strided(const Activation& x) {
  return {mutable_data_of<Element>(x.tensor), x.feature_stride, x.batch_stride};
}

template <class Scalar>
Strided<Scalar> at(Strided<Scalar> m, int64_t feature, int64_t sample) {
  m.data += feature * m.feature_stride + sample * m.batch_stride;
  return m;
}

inline int64_t panels_of(int64_t batch) { return (batch + panel_width - 1) / panel_width; }
inline int samples_of(int64_t panel, int64_t batch) {
  return int(std::min<int64_t>(panel_width, batch - panel * panel_width));
}
template <class Element>
int width_for(int samples) {
  return (samples + sample_multiple<Element> - 1) / sample_multiple<Element> * sample_multiple<Element>;
}

// A full panel of a batch-inner matrix, where it lies.
template <class Scalar>
Panel<Scalar> in_place(Strided<Scalar> m, int64_t feature, int64_t panel) {
  return {at(m, feature, panel * panel_width).data, m.feature_stride, panel_width};
}
template <class Scalar>
Panel<const Scalar> read_only(Panel<Scalar> panel) {
  return {panel.data, panel.stride, panel.width};
}

// One block of the operand whose rows the nonzeros pick: packed by the thread that asks for it, or where it lies.
template <class Element>
struct GatheredBlocks {
  Strided<const Element> source;
  Strided<const Element> gate;  // see KernelsOf::pack
  int64_t features;             // of a whole block
  int64_t all_features;
  int64_t batch;
  double reads;  // how often the kernels read a row of it, on average

  Panel<const Element> get(int64_t wanted_block, int64_t wanted_panel) {
    const int64_t first = wanted_block * features, first_sample = wanted_panel * panel_width;
    const int samples = samples_of(wanted_panel, batch);
    if (source.batch_stride == 1 && samples == panel_width && reads < worth_packing && !gate.data)
      return in_place(source, first, wanted_panel);
    if (block != wanted_block || panel != wanted_panel) {
      packed = workspace<Element>(gathered_block, features, width_for<Element>(samples));
      kernels<Element>().pack(at(source, first, first_sample), gate.data ? at(gate, first, first_sample) : gate,
                              std::min(features, all_features - first), samples, packed);
      block = wanted_block;
      panel = wanted_panel;
    }
    return read_only(packed);
  }

  // Rows of a batch-inner matrix lie far apart, which costs TLB misses; packing them costs a copy.
  static constexpr double worth_packing = 24;

  Panel<Element> packed{};
  int64_t block = -1, panel = -1;
};

inline Range rows_of_part(const PlanView& plan, int64_t part, int64_t parts) {
  return rows_of_part(plan.header.rows, plan.header.block_rows, part, parts,
                      [&](int32_t row) { return plan.nonzeros_before(row); });
}

inline int64_t worthwhile_threads(const PlanHeader& plan, int64_t batch) {
  return worthwhile_threads({plan.nnz, plan.block_rows, batch});
}

inline Segments segments_of(const PlanView& plan, int64_t block, Range rows) {
  return {plan.begin_of(block) + rows.begin, plan.end_of(block) + rows.begin, rows.end - rows.begin, plan.column};
}

}  // namespace sparseprune
