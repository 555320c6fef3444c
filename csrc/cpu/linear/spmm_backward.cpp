// Operators spmm_t, sddmm and spmm_backward: the gradients of spmm, over the plan of the transposed weight.
//
// Like spmm, with rows that are columns of W: one load of a row of g serves the input gradient and the dot product
// that is the weight's gradient. Samples are divided into one group or two, whatever the number of threads, each
// with sums of its own for the gradients of weights and bias; the threads of a group divide its rows. So all
// gradients have the same bits at any number of threads.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "cpu/linear/operands.h"
#include "cpu/linear/panels.h"
#include "cpu/plan_order.h"

namespace sparseprune {
namespace {

constexpr int32_t tile_rows = 128, tile_rows_of_blocks = 2048;  // as in spmm.cpp

// Two groups share the packing of g among two threads; more would cost memory, and are not needed on many cores,
// where the rows are divided further.
struct Division {
  int64_t groups, parts;
};
Division division_of(const PlanHeader& plan, int64_t batch) {
  const int64_t groups = panels_of(batch) % 2 == 0 && batch > 0 ? 2 : 1;
  return {groups, (worthwhile_threads(plan, batch) + groups - 1) / groups};
}

// Where the results go; null: not wanted. The sums are those of each group: [groups, nonzeros], [groups,
// features].
template <class Element>
struct Results {
  Strided<Element> d_x;
  Sum<Element>* d_value;
  Sum<Element>* d_bias;
};

template <class Element>
void run_gradients(const PlanView& plan, Division division, const Sum<Element>* value, Strided<const Element> g,
                   Strided<const Element> gate, Strided<const Element> x, int64_t batch,
                   Results<Element> results) {
  const PlanHeader& h = plan.header;
  if (h.rows == 0 && h.cols == 0) return;  // however many samples there are
  const int64_t panels = panels_of(batch), parts = division.parts, items = division.groups * parts;
  const int64_t features = int64_t(h.cols) * h.block_rows, nonzeros = int64_t(h.nnz) * h.block_rows;
  const int32_t tile = std::min(h.blocks == 1 ? tile_rows : tile_rows_of_blocks, h.rows);
  torch::stable::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
    GatheredBlocks<Element> gathered{g,        gate,  int64_t(h.block_cols) * h.block_rows,
                                     features, batch, double(h.nnz) / std::max(h.cols, 1)};
    for (int64_t item = begin; item < end; ++item) {
      const int64_t group = item / parts, part = item % parts;
      const Range rows = rows_of_part(plan, part, parts);
      Sum<Element>* d_value = results.d_value ? results.d_value + group * nonzeros : nullptr;
      for (int32_t block = 0; d_value && block < h.blocks; ++block) {
        const int32_t* start = plan.begin_of(block);
        std::fill(d_value + int64_t(start[rows.begin]) * h.block_rows,
                  d_value + int64_t(start[rows.end]) * h.block_rows, Sum<Element>(0));
      }
      for (int64_t panel = panels * group / division.groups; panel < panels * (group + 1) / division.groups;
           ++panel) {
        const int samples = samples_of(panel, batch), width = width_for<Element>(samples);
        if (results.d_bias && part == 0)
          for (int32_t block = 0; block < h.blocks; ++block) {
            const int64_t first = int64_t(block) * h.block_cols * h.block_rows;
            kernels<Element>().add_row_sums(gathered.get(block, panel),
                                            std::min(int64_t(h.block_cols) * h.block_rows, features - first),
                                            results.d_bias + group * features + first);
          }
        const bool full = samples == panel_width;
        const bool x_in_place = x.batch_stride == 1 && full;
        const bool d_x_in_place = std::is_same_v<Element, Sum<Element>> && results.d_x.batch_stride == 1 && full;
        for (int32_t row = rows.begin; row < rows.end; row += tile) {
          const Range in_tile{row, std::min(row + tile, rows.end)};
          const int64_t count = in_tile.end - row;
          Panel<const Element> x_rows{};
          if (d_value && x_in_place) {
            x_rows = in_place(x, row, panel);
          } else if (d_value) {
            const Panel<Element> packed = workspace<Element>(row_tile, tile, width);
            kernels<Element>().pack(at(x, row, panel * panel_width), {}, count, samples, packed);
            x_rows = read_only(packed);
          }
          Panel<Sum<Element>> d_x_rows{};
          if constexpr (std::is_same_v<Element, Sum<Element>>)
            if (value && d_x_in_place) d_x_rows = in_place(results.d_x, row, panel);
          if (value && !d_x_in_place) d_x_rows = workspace<Sum<Element>>(gradient_tile, tile, width);
          for (int32_t block = 0; block < h.blocks; ++block)
            kernels<Element>().gradients(segments_of(plan, block, in_tile), h.block_rows, value,
                                         gathered.get(block, panel), x_rows, block > 0, d_x_rows, d_value);
          if (value && !d_x_in_place)
            kernels<Element>().unpack(read_only(d_x_rows), count, samples,
                                      at(results.d_x, row, panel * panel_width));
        }
      }
    }
  });
}

PlanOrder order_of(const PlanView& plan) { return {plan.source, plan.header.nnz, plan.header.block_rows}; }

template <class Element>
Tensor sum_of_groups(const Tensor& sums, int64_t groups, int64_t features, const Tensor& like) {
  const Tensor result = torch::stable::new_empty(like, {features});
  const Sum<Element>* from = data_of<Sum<Element>>(sums);
  for (int64_t f = 0; f < features; ++f) {
    Sum<Element> sum = 0;
    for (int64_t group = 0; group < groups; ++group) sum += from[group * features + f];
    mutable_data_of<Element>(result)[f] = rounded<Element>(sum);
  }
  return result;
}

// What all gradients need: the plan of the transposed weight, and g.
struct Operands {
  PlanView plan;
  WeightSize weight;
  Activation g;
};

Operands checked_operands(const Checks<OnCpu>& checks, const Tensor& g, const Tensor& crow, const Tensor& col,
                          const Tensor& plan_t) {
  const PlanView plan = checked_plan(checks, crow, col, plan_t, true);
  const WeightSize weight = weight_size(plan.header);
  return {plan, weight, checked_output_gradient(checks, g, weight)};
}

Tensor spmm_t(const Tensor& g, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor&,
              const Tensor& plan_t, int64_t cols) {
  const Checks<OnCpu> checks("spmm_t", "g", g);
  const Operands o = checked_operands(checks, g, crow, col, plan_t);
  checks.is_values(values, o.weight.nnz, o.weight.block_rows);
  check(cols == o.weight.cols, "spmm_t: expected cols == ", o.weight.cols, " (the plan's), got ", cols);

  const Activation d_x(new_activation(g, cols, o.g.batch, o.g.batch_inner()));
  if (d_x.features == 0 || d_x.batch == 0) return d_x.tensor;
  const Activation from = with_unit_stride(o.g);
  const Division division = division_of(o.plan.header, o.g.batch);
  dispatch(checks.type, [&](auto zero) {
    using Element = decltype(zero);
    const Tensor value = in_plan_order<Element>(values, order_of(o.plan));
    run_gradients<Element>(o.plan, division, data_of<Sum<Element>>(value), strided<Element>(from), {}, {},
                           d_x.batch, {mutable_strided<Element>(d_x), nullptr, nullptr});
  });
  return d_x.tensor;
}

Tensor sddmm(const Tensor& g, const Tensor& x, const Tensor& crow, const Tensor& col, const Tensor&,
             const Tensor& plan_t, int64_t block_rows) {
  const Checks<OnCpu> checks("sddmm", "g", g);
  const Operands o = checked_operands(checks, g, crow, col, plan_t);
  const Activation input = with_unit_stride(checked_input_of(o.g, checks, x, o.weight));
  check(block_rows == o.weight.block_rows, "sddmm: expected block_rows == ", o.weight.block_rows,
        " (the plan's), got ", block_rows);

  const Activation from = with_unit_stride(o.g);
  const Division division = division_of(o.plan.header, o.g.batch);
  return dispatch(checks.type, [&](auto zero) {
    using Element = decltype(zero);
    const Tensor sums = new_sums<Element>(division.groups, order_of(o.plan), x);
    run_gradients<Element>(o.plan, division, nullptr, strided<Element>(from), {}, strided<Element>(input),
                           input.batch, {{}, mutable_data_of<Sum<Element>>(sums), nullptr});
    return from_plan_order<Element>(sums, division.groups, order_of(o.plan), x);
  });
}

std::tuple<Tensor, Tensor, Tensor> spmm_backward(const Tensor& g, const Tensor& x, const Tensor& values,
                                                 const Tensor& crow, const Tensor& col, const Tensor&,
                                                 const Tensor& plan_t, const std::optional<Tensor>& y) {
  const Checks<OnCpu> checks("spmm_backward", "g", g);
  const Operands o = checked_operands(checks, g, crow, col, plan_t);
  const Activation input = checked_input_of(o.g, checks, x, o.weight);
  checks.is_values(values, o.weight.nnz, o.weight.block_rows);
  const std::optional<Activation> output = y ? std::optional(checked_output_of(o.g, checks, *y)) : std::nullopt;

  const Activation from = with_unit_stride(o.g), in = with_unit_stride(input);
  const std::optional<Activation> gate = output ? std::optional(in_layout_of(from, *output)) : std::nullopt;
  const Activation d_x(new_activation(x, o.weight.cols, input.batch, input.batch_inner()));
  const Division division = division_of(o.plan.header, input.batch);
  return dispatch(checks.type, [&](auto zero) -> std::tuple<Tensor, Tensor, Tensor> {
    using Element = decltype(zero);
    const PlanOrder order = order_of(o.plan);
    const Tensor value = in_plan_order<Element>(values, order);
    const Tensor d_value = new_sums<Element>(division.groups, order, x);
    const Tensor d_bias = torch::stable::new_zeros(x, {division.groups, from.features}, sum_type<Element>);
    run_gradients<Element>(o.plan, division, data_of<Sum<Element>>(value), strided<Element>(from),
                           gate ? strided<Element>(*gate) : Strided<const Element>{}, strided<Element>(in),
                           in.batch,
                           {mutable_strided<Element>(d_x), mutable_data_of<Sum<Element>>(d_value),
                            mutable_data_of<Sum<Element>>(d_bias)});
    return {d_x.tensor, from_plan_order<Element>(d_value, division.groups, order, x),
            sum_of_groups<Element>(d_bias, division.groups, from.features, x)};
  });
}

}  // namespace
}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, m) {
  m.impl("spmm_t", TORCH_BOX(&sparseprune::spmm_t));
  m.impl("sddmm", TORCH_BOX(&sparseprune::sddmm));
  m.impl("spmm_backward", TORCH_BOX(&sparseprune::spmm_backward));
}
