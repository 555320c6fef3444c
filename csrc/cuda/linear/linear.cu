// Operators spmm, spmm_t, sddmm and spmm_backward on a GPU.
//
// Kernels read and write rows of samples. Activations that lie otherwise are transposed first.
#include <tuple>

#include "common/pattern.h"
#include "cuda/linear/products.h"
#include "cuda/plan.h"

namespace sparseprune::cuda {
namespace {

// A weight by its block rows and by its columns.
struct Weight {
  int64_t block_rows, cols;
  int32_t nnz;
  Tensor start, index;  // crow and col, contiguous
  Rows by_rows;
  TransposedPlan by_columns;

  int64_t rows() const { return by_rows.count * block_rows; }
};

Weight checked_weight(const char* op, const Tensor& crow, const Tensor& col, const Tensor& plan,
                      const Tensor& plan_t, int64_t block_rows, const Tensor& like) {
  check_block_rows(op, block_rows);
  check_type(op, "crow", crow, ScalarType::Int, like);
  check_type(op, "col", col, ScalarType::Int, like);
  check_type(op, "plan", plan, ScalarType::Int, like);
  check_type(op, "plan_t", plan_t, ScalarType::Int, like);
  const int64_t rows = crow.numel() - 1, nnz = col.numel(), twice_cols = plan_t.numel() - 1 - 2 * nnz;
  check(crow.dim() == 1 && col.dim() == 1 && rows >= 0 && plan.is_contiguous() && plan.numel() == rows &&
            plan_t.is_contiguous() && twice_cols >= 0 && twice_cols % 2 == 0,
        op, ": expected plans made by sparseprune::plan on a GPU, of this pattern (", rows, " rows of blocks, ",
        nnz, " nonzeros), got ones of ", plan.numel(), " and ", plan_t.numel(),
        " numbers; build them again after changing or moving the pattern");
  const Tensor start = torch::stable::contiguous(crow), index = torch::stable::contiguous(col);
  const int64_t cols = twice_cols / 2;
  return {block_rows,
          cols,
          int32_t(nnz),
          start,
          index,
          {data_of<int32_t>(start), data_of<int32_t>(index), data_of<int32_t>(plan), int32_t(rows)},
          TransposedPlan(data_of<int32_t>(plan_t), int32_t(cols), int32_t(nnz))};
}

int64_t block_rows_of(const char* op, const Tensor& values) {
  check(values.dim() == 2, op, ": expected values.shape == [nonzero blocks of the pattern, rows of a block], got ",
        shape_of(values));
  return values.size(1);
}

// y [rows, batch] as asked for
Tensor in_layout(const Tensor& y, bool batch_inner) {
  using torch::stable::contiguous, torch::stable::transpose;
  return batch_inner ? y : transpose(contiguous(transpose(y, 0, 1)), 0, 1);
}

Tensor spmm(const Tensor& x, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor& plan,
            const Tensor& plan_t, const std::optional<Tensor>& bias, std::optional<bool> batch_inner, bool relu) {
  const ScalarType type = check_floating("spmm", "x", x);
  check_type("spmm", "values", values, type, x);
  const Weight w = checked_weight("spmm", crow, col, plan, plan_t, block_rows_of("spmm", values), x);
  check_values("spmm", values, w.nnz, w.block_rows);
  check_activation("spmm", "x", x, w.cols, "weight columns");
  if (bias) {
    check_type("spmm", "bias", *bias, type, x);
    check_vector("spmm", "bias", *bias, w.rows(), "weight rows");
  }
  const int64_t batch = x.size(1);
  const OnDeviceOf device("spmm", x);
  const Tensor in = torch::stable::contiguous(x), value = torch::stable::contiguous(values),
               y = torch::stable::new_empty(x, {w.rows(), batch});
  const std::optional<Tensor> b = bias ? std::optional(torch::stable::contiguous(*bias)) : std::nullopt;
  multiply(w.by_rows, value, in, batch, b, relu, y, device.stream);
  device.check_launches();
  return in_layout(y, batch_inner.value_or(is_batch_inner(x)));
}

// ---- gradients ----

// d_x [cols, batch] of a g [rows, batch] that is contiguous
Tensor input_gradient(const Weight& w, const Tensor& g, const Tensor& values, cudaStream_t stream) {
  const Tensor value = torch::stable::contiguous(values), d_x = torch::stable::new_empty(g, {w.cols, g.size(1)});
  multiply_transposed(w.by_columns.rows, w.by_columns.source, value, g, g.size(1), d_x, stream);
  return d_x;
}

// d_values of g and x that are contiguous
Tensor weight_gradient(const Weight& w, const Tensor& g, const Tensor& x, cudaStream_t stream) {
  const Tensor d_values = torch::stable::new_empty(g, {int64_t(w.nnz), w.block_rows});
  multiply_sampled(w.by_rows, g, x, x.size(1), d_values, stream);
  return d_values;
}

void check_gradient(const char* op, const Tensor& g, const Weight& w) {
  check_activation(op, "g", g, w.rows(), "weight rows");
}

void check_input(const char* op, const Tensor& x, const Tensor& g, const Weight& w) {
  check_type(op, "x", x, g.scalar_type(), g);
  check_activation(op, "x", x, w.cols, "weight columns");
  check(g.size(1) == x.size(1), op, ": expected x and g of one batch size, got ", x.size(1), " and ", g.size(1));
}

Tensor spmm_t(const Tensor& g, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor& plan,
              const Tensor& plan_t, int64_t cols) {
  check_type("spmm_t", "values", values, check_floating("spmm_t", "g", g), g);
  const Weight w = checked_weight("spmm_t", crow, col, plan, plan_t, block_rows_of("spmm_t", values), g);
  check_gradient("spmm_t", g, w);
  check_values("spmm_t", values, w.nnz, w.block_rows);
  check(cols == w.cols, "spmm_t: expected cols == ", w.cols, " (the plan's), got ", cols);
  const OnDeviceOf device("spmm_t", g);
  const Tensor d_x = input_gradient(w, torch::stable::contiguous(g), values, device.stream);
  device.check_launches();
  return in_layout(d_x, is_batch_inner(g));
}

Tensor sddmm(const Tensor& g, const Tensor& x, const Tensor& crow, const Tensor& col, const Tensor& plan,
             const Tensor& plan_t, int64_t block_rows) {
  check_floating("sddmm", "g", g);
  const Weight w = checked_weight("sddmm", crow, col, plan, plan_t, block_rows, g);
  check_gradient("sddmm", g, w);
  check_input("sddmm", x, g, w);
  const OnDeviceOf device("sddmm", g);
  const Tensor d_values =
      weight_gradient(w, torch::stable::contiguous(g), torch::stable::contiguous(x), device.stream);
  device.check_launches();
  return d_values;
}

std::tuple<Tensor, Tensor, Tensor> spmm_backward(const Tensor& g, const Tensor& x, const Tensor& values,
                                                 const Tensor& crow, const Tensor& col, const Tensor& plan,
                                                 const Tensor& plan_t, const std::optional<Tensor>& y) {
  const char* op = "spmm_backward";
  const ScalarType type = check_floating(op, "g", g);
  check_type(op, "values", values, type, g);
  const Weight w = checked_weight(op, crow, col, plan, plan_t, block_rows_of(op, values), g);
  check_gradient(op, g, w);
  check_input(op, x, g, w);
  check_values(op, values, w.nnz, w.block_rows);
  if (y) {
    check_type(op, "y", *y, type, g);
    check(shape_of(*y) == shape_of(g), op, ": expected y.shape == ", shape_of(g), " (that of g), got ",
          shape_of(*y));
  }
  const OnDeviceOf device(op, g);
  const Tensor grad = torch::stable::contiguous(g), in = torch::stable::contiguous(x),
               d_bias = torch::stable::new_empty(g, {g.size(0)});
  const std::optional<Tensor> output = y ? std::optional(torch::stable::contiguous(*y)) : std::nullopt,
                              gated = y ? std::optional(torch::stable::new_empty(g, g.sizes())) : std::nullopt;
  sum_rows(grad, output, g.size(1), gated, d_bias, device.stream);
  const Tensor& passed = gated ? *gated : grad;
  const Tensor d_x = input_gradient(w, passed, values, device.stream),
               d_values = weight_gradient(w, passed, in, device.stream);
  device.check_launches();
  return {in_layout(d_x, is_batch_inner(x)), d_values, d_bias};
}

}  // namespace
}  // namespace sparseprune::cuda

REGISTER_FOR_CUDA(m) {
  m.impl("spmm", TORCH_BOX(&sparseprune::cuda::spmm));
  m.impl("spmm_t", TORCH_BOX(&sparseprune::cuda::spmm_t));
  m.impl("sddmm", TORCH_BOX(&sparseprune::cuda::sddmm));
  m.impl("spmm_backward", TORCH_BOX(&sparseprune::cuda::spmm_backward));
}
