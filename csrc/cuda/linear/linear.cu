// Operators spmm, spmm_t, sddmm and spmm_backward on a GPU.
//
// Kernels read and write rows of samples. Activations that lie otherwise are transposed first.
#include <tuple>

#include "common/known_plans.h"
#include "common/linear_call.h"
#include "cuda/linear/plan.h"
#include "cuda/linear/products.h"
#include "cuda/stream.h"

namespace sparseprune::cuda {
namespace {

// A weight by its block rows and by its columns.
struct Weight {
  WeightSize size;
  Tensor start, index;  // crow and col, contiguous
  Rows by_rows;
  TransposedPlan by_columns;
};

Weight checked_weight(const Checks<Here>& checks, const Tensor& crow, const Tensor& col, const Tensor& plan,
                      const Tensor& plan_t, int64_t block_rows) {
  const char* op = checks.op;
  check_block_rows(op, block_rows);
  checks.is_indices("crow", crow);
  checks.is_indices("col", col);
  checks.is_indices("plan", plan);
  checks.is_indices("plan_t", plan_t);
  const int64_t rows = crow.numel() - 1, nnz = col.numel(), twice_cols = plan_t.numel() - 1 - 2 * nnz;
  check(crow.dim() == 1 && col.dim() == 1 && rows >= 0 && plan.is_contiguous() && plan.numel() == rows &&
            plan_t.is_contiguous() && twice_cols >= 0 && twice_cols % 2 == 0,
        op, ": expected plans made by sparseprune::plan on a GPU, of this pattern (", rows, " rows of blocks, ",
        nnz, " nonzeros), got ones of ", plan.numel(), " and ", plan_t.numel(),
        " numbers; build them again after changing or moving the pattern");
  const int64_t cols = twice_cols / 2;
  for (const bool transposed : {false, true})
    check_plan(
        op, "plan", crow, col, transposed ? plan_t : plan,
        [&] { return plan_on_cpu(on_cpu(crow), on_cpu(col), cols, block_rows, transposed); }, on_cpu);
  const Tensor start = torch::stable::contiguous(crow), index = torch::stable::contiguous(col);
  return {{rows * block_rows, cols, nnz, block_rows},
          start,
          index,
          {data_of<int32_t>(start), data_of<int32_t>(index), data_of<int32_t>(plan), int32_t(rows)},
          TransposedPlan(data_of<int32_t>(plan_t), int32_t(cols), int32_t(nnz))};
}

// y [rows, batch] as asked for
Tensor finished(const Tensor& y, bool batch_inner) { return batch_inner ? y : feature_inner(y); }

Tensor spmm(const Tensor& x, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor& plan,
            const Tensor& plan_t, const std::optional<Tensor>& bias, std::optional<bool> batch_inner, bool relu) {
  const Checks<Here> checks("spmm", "x", x);
  const Weight w = checked_weight(checks, crow, col, plan, plan_t, checks.block_rows_of(values, col));
  const Activation input = checked_input(checks, x, w.size);
  checks.is_bias(bias, w.size.rows, "weight rows");

  const OnDeviceOf device("spmm", x);
  const Tensor in = torch::stable::contiguous(x), value = torch::stable::contiguous(values),
               y = torch::stable::new_empty(x, {w.size.rows, input.batch});
  const std::optional<Tensor> b = bias ? std::optional(torch::stable::contiguous(*bias)) : std::nullopt;
  multiply(w.by_rows, value, in, input.batch, b, relu, y, device.stream);
  device.check_launches();
  return finished(y, batch_inner.value_or(input.batch_inner()));
}

// ---- gradients ----

// d_x [cols, batch] of a g [rows, batch] that is contiguous
Tensor input_gradient(const Weight& w, const Tensor& g, const Tensor& values, cudaStream_t stream) {
  const Tensor value = torch::stable::contiguous(values),
               d_x = torch::stable::new_empty(g, {w.size.cols, g.size(1)});
  multiply_transposed(w.by_columns.rows, w.by_columns.source, value, g, g.size(1), d_x, stream);
  return d_x;
}

// d_values of g and x that are contiguous
Tensor weight_gradient(const Weight& w, const Tensor& g, const Tensor& x, cudaStream_t stream) {
  const Tensor d_values = torch::stable::new_empty(g, {w.size.nnz, w.size.block_rows});
  multiply_sampled(w.by_rows, g, x, x.size(1), d_values, stream);
  return d_values;
}

Tensor spmm_t(const Tensor& g, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor& plan,
              const Tensor& plan_t, int64_t cols) {
  const Checks<Here> checks("spmm_t", "g", g);
  const Weight w = checked_weight(checks, crow, col, plan, plan_t, checks.block_rows_of(values, col));
  const Activation grad = checked_output_gradient(checks, g, w.size);
  check(cols == w.size.cols, "spmm_t: expected cols == ", w.size.cols, " (the plan's), got ", cols);

  const OnDeviceOf device("spmm_t", g);
  const Tensor d_x = input_gradient(w, torch::stable::contiguous(g), values, device.stream);
  device.check_launches();
  return finished(d_x, grad.batch_inner());
}

Tensor sddmm(const Tensor& g, const Tensor& x, const Tensor& crow, const Tensor& col, const Tensor& plan,
             const Tensor& plan_t, int64_t block_rows) {
  const Checks<Here> checks("sddmm", "g", g);
  const Weight w = checked_weight(checks, crow, col, plan, plan_t, block_rows);
  checked_input_of(checked_output_gradient(checks, g, w.size), checks, x, w.size);

  const OnDeviceOf device("sddmm", g);
  const Tensor d_values =
      weight_gradient(w, torch::stable::contiguous(g), torch::stable::contiguous(x), device.stream);
  device.check_launches();
  return d_values;
}

std::tuple<Tensor, Tensor, Tensor> spmm_backward(const Tensor& g, const Tensor& x, const Tensor& values,
                                                 const Tensor& crow, const Tensor& col, const Tensor& plan,
                                                 const Tensor& plan_t, const std::optional<Tensor>& y) {
  const Checks<Here> checks("spmm_backward", "g", g);
  const Weight w = checked_weight(checks, crow, col, plan, plan_t, checks.block_rows_of(values, col));
  const Activation gradient = checked_output_gradient(checks, g, w.size),
                   input = checked_input_of(gradient, checks, x, w.size);
  if (y) checked_output_of(gradient, checks, *y);

  const OnDeviceOf device("spmm_backward", g);
  const Tensor grad = torch::stable::contiguous(g), in = torch::stable::contiguous(x),
               d_bias = torch::stable::new_empty(g, {w.size.rows});
  const std::optional<Tensor> output = y ? std::optional(torch::stable::contiguous(*y)) : std::nullopt,
                              gated = y ? std::optional(torch::stable::new_empty(g, g.sizes())) : std::nullopt;
  sum_rows(grad, output, input.batch, gated, d_bias, device.stream);
  const Tensor& passed = gated ? *gated : grad;
  const Tensor d_x = input_gradient(w, passed, values, device.stream),
               d_values = weight_gradient(w, passed, in, device.stream);
  device.check_launches();
  return {finished(d_x, input.batch_inner()), d_values, d_bias};
}

}  // namespace
}  // namespace sparseprune::cuda

REGISTER_FOR_CUDA(m) {
  m.impl("spmm", TORCH_BOX(&sparseprune::cuda::spmm));
  m.impl("spmm_t", TORCH_BOX(&sparseprune::cuda::spmm_t));
  m.impl("sddmm", TORCH_BOX(&sparseprune::cuda::sddmm));
  m.impl("spmm_backward", TORCH_BOX(&sparseprune::cuda::spmm_backward));
}
