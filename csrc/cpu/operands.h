// What the sparse products share: checks of their arguments, views of tensors, and a thread's buffers.
#pragma once
#include <torch/headeronly/util/BFloat16.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>

#include "common/layout.h"
#include "cpu/kernels/isa.h"
#include "cpu/kernels/kernels.h"
#include "cpu/linear/plan.h"

namespace sparseprune {

// ---- checks ----

inline void check_type(const char* op, const char* what, const Tensor& t, ScalarType expected) {
  check(t.is_cpu(), op, ": expected ", what,
        " on the CPU like the other tensors, got another device; move all to one device");
  check_dtype(op, what, t, expected);
}

inline ScalarType check_floating(const char* op, const char* what, const Tensor& t) {
  const ScalarType type = t.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Double, op, ": expected ",
        what, " to be float32 or bfloat16 (or float64, slow, for checking gradients), got ", name_of(type),
        "; convert with .float()");
  return type;
}

inline PlanView check_plan(const char* op, const Tensor& crow, const Tensor& col, const Tensor& plan,
                           bool transposed) {
  check_type(op, "crow", crow, ScalarType::Int);
  check_type(op, "col", col, ScalarType::Int);
  check_type(op, "plan", plan, ScalarType::Int);
  const int64_t header_size = sizeof(PlanHeader) / 4;
  check(plan.dim() == 1 && plan.is_contiguous() && plan.numel() >= header_size &&
            plan.const_data_ptr<int32_t>()[0] == PlanHeader::expected_magic &&
            plan.numel() == PlanView::size(*reinterpret_cast<const PlanHeader*>(plan.const_data_ptr<int32_t>())) &&
            bool(plan.const_data_ptr<int32_t>()[1]) == transposed,
        op, ": expected a plan made by sparseprune::plan", transposed ? " of the transpose" : "",
        ", got another tensor; build it from crow and col");
  const PlanView view(plan.const_data_ptr<int32_t>());
  const int64_t rows = transposed ? view.header.cols : view.header.rows;
  check(crow.numel() == rows + 1 && col.numel() == view.header.nnz, op, ": expected the plan of this pattern (",
        crow.numel() - 1, " rows of blocks, ", col.numel(), " nonzeros), got one of ", rows, " and ",
        view.header.nnz, "; build it again after changing the pattern");
  return view;
}

inline void check_nonzeros(const char* op, const Tensor& values, const PlanHeader& plan) {
  check_values(op, values, plan.nnz, plan.block_rows);
}

// ---- layout ----

// [features, batch] in which one of the strides is 1; a copy only where neither is.
inline Tensor with_unit_stride(const Tensor& x) {
  if (x.stride(0) == 1 || x.stride(1) == 1) return x;
  return torch::stable::transpose(torch::stable::contiguous(torch::stable::transpose(x, 0, 1)), 0, 1);
}

// x with the unit stride where `like` has it; a copy only where it is elsewhere.
inline Tensor in_layout_of(const Tensor& like, const Tensor& x) {
  if (like.stride(1) == 1) return x.stride(1) == 1 ? x : torch::stable::contiguous(x);
  if (x.stride(0) == 1) return x;
  return torch::stable::transpose(torch::stable::contiguous(torch::stable::transpose(x, 0, 1)), 0, 1);
}

// ---- from tensors to what kernels see ----

template <class Element>
const Element* data_of(const Tensor& t) {
  if constexpr (std::is_same_v<Element, BFloat16>)
    return reinterpret_cast<const BFloat16*>(t.const_data_ptr<torch::headeronly::BFloat16>());
  else
    return t.const_data_ptr<Element>();
}
template <class Element>
Element* mutable_data_of(const Tensor& t) {
  if constexpr (std::is_same_v<Element, BFloat16>)
    return reinterpret_cast<BFloat16*>(t.mutable_data_ptr<torch::headeronly::BFloat16>());
  else
    return t.mutable_data_ptr<Element>();
}

template <class Element>
Strided<const Element> view(const Tensor& x) {
  return {data_of<Element>(x), x.stride(0), x.stride(1)};
}
template <class Element>
Strided<Element> mutable_view(const Tensor& x) {
  return {mutable_data_of<Element>(x), x.stride(0), x.stride(1)};
}

template <class Scalar>
Strided<Scalar> at(Strided<Scalar> m, int64_t feature, int64_t sample) {
  m.data += feature * m.feature_stride + sample * m.batch_stride;
  return m;
}

template <class Element>
constexpr ScalarType sum_type = std::is_same_v<Element, double> ? ScalarType::Double : ScalarType::Float;

constexpr int64_t copy_grain = 1 << 14;

// A tensor of Element as contiguous Sum<Element>: itself where it is that already.
template <class Element>
Tensor widened_copy(const Tensor& t) {
  const Tensor from = torch::stable::contiguous(t);
  if constexpr (std::is_same_v<Element, Sum<Element>>) return from;
  const Tensor to = torch::stable::new_empty(from, {t.numel()}, sum_type<Element>);
  const Element* in = data_of<Element>(from);
  Sum<Element>* out = mutable_data_of<Sum<Element>>(to);
  torch::stable::parallel_for(0, t.numel(), copy_grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = widened(in[i]);
  });
  return to;
}

template <class F>
auto dispatch(ScalarType type, F f) {
  return type == ScalarType::Double ? f(double{}) : type == ScalarType::BFloat16 ? f(BFloat16{}) : f(float{});
}

template <class Element>
const KernelsOf<Element>& kernels() {
  if constexpr (std::is_same_v<Element, double>)
    return double_kernels();
  else if constexpr (std::is_same_v<Element, BFloat16>)
    return current_isa().kernels().of_bfloat16;
  else
    return current_isa().kernels().of_float;
}

// ---- panels ----

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

// A buffer of the calling thread that keeps its memory between calls: fresh pages cost more than the arithmetic.
enum Slot { gathered_block, row_tile, gradient_tile, slots };
template <class Scalar>
Panel<Scalar> workspace(Slot slot, int64_t features, int width) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> memory[slots];
  thread_local size_t capacity[slots] = {};
  const size_t bytes = (size_t(std::max<int64_t>(features, 1)) * width * sizeof(Scalar) + 63) / 64 * 64;
  if (bytes > capacity[slot]) {
    memory[slot].reset(std::aligned_alloc(64, bytes));
    capacity[slot] = memory[slot] ? bytes : 0;
    if (!memory[slot]) throw std::bad_alloc();
  }
  return {static_cast<Scalar*>(memory[slot].get()), width, width};
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

// ---- the division of work among threads ----

struct Range {
  int32_t begin, end;
};

// Rows of part `part` of `parts`, of about equal work: nonzeros, and the layout of a row, about 8 nonzeros' time.
template <class NonzerosBefore>
Range rows_of_part(int32_t rows, int64_t block_rows, int64_t part, int64_t parts, NonzerosBefore nonzeros_before) {
  const auto work_before = [&](int32_t row) { return nonzeros_before(row) * block_rows + 8 * int64_t(row); };
  const int64_t total = work_before(rows);
  const auto boundary = [&](int64_t i) {
    int32_t low = 0, high = rows;
    while (low < high) {
      const int32_t middle = low + (high - low) / 2;
      work_before(middle)* parts < total* i ? low = middle + 1 : high = middle;
    }
    return low;
  };
  return {part == 0 ? 0 : boundary(part), part + 1 == parts ? rows : boundary(part + 1)};
}

inline Range rows_of_part(const PlanView& plan, int64_t part, int64_t parts) {
  return rows_of_part(plan.header.rows, plan.header.block_rows, part, parts,
                      [&](int32_t row) { return plan.nonzeros_before(row); });
}

constexpr int64_t serial_work = 1 << 15;  // multiply-adds below which a second thread costs more than it saves

inline int64_t worthwhile_threads(const PlanHeader& plan, int64_t batch) {
  return int64_t(plan.nnz) * plan.block_rows * batch < serial_work ? 1 : int64_t(torch::stable::get_num_threads());
}

inline Segments segments_of(const PlanView& plan, int64_t block, Range rows) {
  return {plan.begin_of(block) + rows.begin, plan.end_of(block) + rows.begin, rows.end - rows.begin, plan.column};
}

}  // namespace sparseprune
