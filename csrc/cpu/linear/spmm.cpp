// Operator spmm: y = W x + bias, or max(y, 0) of that.
//
// Samples are cut into panels and columns into the plan's blocks. A thread packs one block of x into a buffer of
// its own (so that it is read from memory once, strided or not), runs rows of W over it and writes their results.
// What is added to an output element, and in which order, is fixed by the plan alone: the same bits at any number
// of threads. One sample alone is not a panel: there, vectors run along the nonzeros.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "cpu/linear/operands.h"
#include "cpu/linear/panels.h"

namespace sparseprune {
namespace {

// Rows of y computed before they are brought into its layout: few where a row is complete at once, since they are
// still in the L1 cache then; many where every block of columns adds to them.
constexpr int32_t tile_rows = 128, tile_rows_of_blocks = 2048;

template <class Element>
void run_spmm(const PlanView& plan, const Sum<Element>* value, Strided<const Element> x, const Sum<Element>* bias,
              bool relu, int64_t batch, Strided<Element> y) {
  const PlanHeader& h = plan.header;
  const int64_t panels = panels_of(batch), threads = worthwhile_threads(h, batch);
  // Whole panels where they can be dealt out evenly; otherwise every panel's rows are divided too.
  const int64_t parts = panels % threads == 0 ? 1 : threads;
  const int32_t tile = std::min((h.blocks == 1 ? tile_rows : tile_rows_of_blocks) / h.block_rows, h.rows);
  torch::stable::parallel_for(0, panels * parts, 1, [&](int64_t begin, int64_t end) {
    GatheredBlocks<Element> gathered{x, {}, h.block_cols, h.cols, batch, double(h.nnz) / h.cols};
    for (int64_t item = begin; item < end; ++item) {
      const int64_t panel = item / parts;
      const int samples = samples_of(panel, batch);
      const Range rows = rows_of_part(plan, item % parts, parts);
      // A full panel of a batch-inner y takes the sums as they are, unless it would be read and written
      // repeatedly.
      const bool direct =
          std::is_same_v<Element, Sum<Element>> && y.batch_stride == 1 && samples == panel_width && h.blocks == 1;
      for (int32_t row = rows.begin; row < rows.end; row += direct ? h.rows : tile) {
        const Range in_tile{row, direct ? rows.end : std::min(row + tile, rows.end)};
        const int64_t first = int64_t(row) * h.block_rows;
        Panel<Sum<Element>> sums;
        if constexpr (std::is_same_v<Element, Sum<Element>>)
          if (direct) sums = in_place(y, first, panel);
        if (!direct)
          sums = workspace<Sum<Element>>(row_tile, int64_t(tile) * h.block_rows, width_for<Element>(samples));
        for (int32_t block = 0; block < h.blocks; ++block) {
          const bool last = block + 1 == h.blocks;
          kernels<Element>().spmm(
              segments_of(plan, block, in_tile), h.block_rows, value, gathered.get(block, panel),
              {block > 0 ? sums.data : nullptr, last && bias ? bias + first : nullptr, last && relu}, sums);
        }
        if (!direct)
          kernels<Element>().unpack(read_only(sums), int64_t(in_tile.end - row) * h.block_rows, samples,
                                    at(y, first, panel * panel_width));
      }
    }
  });
}

template <class Element>
void run_spmv(const PlanView& plan, const Element* value, const Sum<Element>* x, Sum<Element>* y) {
  const PlanHeader& h = plan.header;
  const int64_t parts = worthwhile_threads(h, 1);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      const Range rows = rows_of_part(plan, part, parts);
      kernels<Element>().spmv(segments_of(plan, 0, rows), {h.blocks, h.block_cols, h.rows}, h.block_rows, value, x,
                              y + int64_t(rows.begin) * h.block_rows);
    }
  });
}

template <class Element>
void multiply_one(const PlanView& plan, const Activation& x, const Tensor& values, const Sum<Element>* bias,
                  bool relu, Strided<Element> y) {
  const int64_t rows = int64_t(plan.header.rows) * plan.header.block_rows;
  const Tensor column = widened_copy<Element>(torch::stable::transpose(x.tensor, 0, 1));
  const Tensor sums = torch::stable::new_zeros(x.tensor, {rows}, sum_type<Element>);
  Sum<Element>* sum = mutable_data_of<Sum<Element>>(sums);
  if (bias) std::copy(bias, bias + rows, sum);
  run_spmv<Element>(plan, data_of<Element>(torch::stable::contiguous(values)), data_of<Sum<Element>>(column), sum);
  for (int64_t r = 0; r < rows; ++r)
    y.data[r * y.feature_stride] = rounded<Element>(relu && sum[r] < 0 ? 0 : sum[r]);
}

Tensor spmm(const Tensor& x, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor& plan_of_w,
            const Tensor&, const std::optional<Tensor>& bias, std::optional<bool> batch_inner, bool relu) {
  const Checks<OnCpu> checks("spmm", "x", x);
  const PlanView plan = checked_plan(checks, crow, col, plan_of_w, false);
  const WeightSize weight = weight_size(plan.header);
  const Activation input = checked_input(checks, x, weight);
  checks.is_values(values, weight.nnz, weight.block_rows);
  checks.is_bias(bias, weight.rows, "weight rows");

  const Activation y(new_activation(x, weight.rows, input.batch, batch_inner.value_or(input.batch_inner())));
  if (y.features == 0 || y.batch == 0) return y.tensor;
  dispatch(checks.type, [&](auto zero) {
    using Element = decltype(zero);
    const std::optional<Tensor> sums = bias ? std::optional(widened_copy<Element>(*bias)) : std::nullopt;
    const Sum<Element>* b = sums ? data_of<Sum<Element>>(*sums) : nullptr;
    if (y.batch == 1) return multiply_one<Element>(plan, input, values, b, relu, mutable_strided<Element>(y));
    const Activation from = with_unit_stride(input);
    const Tensor value = widened_copy<Element>(values);
    run_spmm<Element>(plan, data_of<Sum<Element>>(value), strided<Element>(from), b, relu, y.batch,
                      mutable_strided<Element>(y));
  });
  return y.tensor;
}

}  // namespace
}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, m) { m.impl("spmm", TORCH_BOX(&sparseprune::spmm)); }
