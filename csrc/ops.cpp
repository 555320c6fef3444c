// Every operator of the library, one schema a line: the one list of what exists.
// Implementations register themselves beside their kernels (cpu/ and cuda/).
// sparseprune/ops/plain holds the same list in plain torch; a test compares the two.
//
// A sparse weight W [rows, cols] is stored in blocks of V rows x 1 column, V = 1, 2, 4, 8 or 16: values [nnz, V],
// crow [rows / V + 1], col [nnz] (torch's BSR layout; CSR for V = 1). Activations are [features, batch] with any
// strides; results are batch-innermost in memory where the input is, or as asked.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(sparseprune, m) {
  // Mask selection: exactly k True over all tensors together.
  m.def("topk_masks(Tensor[] scores, int k) -> Tensor[]");
  // The k largest scores outside a pattern (crow, col) and where they are, row * columns + column ascending: of
  // those found so far (best, best_at) and of the rows from first_row on. Rows are those of blocks.
  m.def(
      "topk_outside(Tensor scores, Tensor crow, Tensor col, int first_row, Tensor best, Tensor best_at, int k) -> "
      "(Tensor, Tensor)");
  // What the kernels derive from a pattern, once: of W for spmm, of its transpose (plan_t) for the other three.
  // All four operators take both plans, since the derivative of one is another.
  m.def("plan(Tensor crow, Tensor col, int cols, int block_rows, bool transposed) -> Tensor");
  // y = W x + bias; relu: max(y, 0)
  m.def(
      "spmm(Tensor x, Tensor values, Tensor crow, Tensor col, Tensor plan, Tensor plan_t, Tensor? bias=None, "
      "bool? batch_inner=None, bool relu=False) -> Tensor");
  // d_x = W^T g
  m.def(
      "spmm_t(Tensor g, Tensor values, Tensor crow, Tensor col, Tensor plan, Tensor plan_t, int cols) -> Tensor");
  // d_values = (g x^T) at the nonzeros of W
  m.def(
      "sddmm(Tensor g, Tensor x, Tensor crow, Tensor col, Tensor plan, Tensor plan_t, int block_rows) -> Tensor");
  // All gradients (d_x, d_values, d_bias), with one pass over g; y, the output of a spmm with relu: g is zero
  // where y <= 0.
  m.def(
      "spmm_backward(Tensor g, Tensor x, Tensor values, Tensor crow, Tensor col, Tensor plan, Tensor plan_t, "
      "Tensor? y=None) -> (Tensor, Tensor, Tensor)");

  // Sparse convolution: x (N, C, H, W), W [out channels, (C / groups) x kernel height x kernel width] in blocks of
  // V out channels. geometry: C, kernel, stride (height and width each), padding (top, bottom, left, right),
  // dilation, groups. plan_t serves the gradients.
  m.def("conv2d_plan(Tensor crow, Tensor col, int[] geometry, int block_rows) -> Tensor");
  // y = conv(x, W) + bias
  m.def(
      "conv2d(Tensor x, Tensor values, Tensor crow, Tensor col, Tensor plan_t, int[] geometry, Tensor? bias=None, "
      "bool? batch_inner=None) -> Tensor");
  // y = relu(conv(x, W) + bias + residual), residual as y; relu as asked
  m.def(
      "conv2d_act(Tensor x, Tensor values, Tensor crow, Tensor col, Tensor plan_t, int[] geometry, Tensor? bias, "
      "Tensor? residual, bool relu, bool? batch_inner=None) -> Tensor");
  // d_x, of the input's height and width
  m.def(
      "conv2d_t(Tensor g, Tensor values, Tensor crow, Tensor col, Tensor plan_t, int[] geometry, int[] "
      "input_size) "
      "-> Tensor");
  // d_values
  m.def(
      "conv2d_sddmm(Tensor g, Tensor x, Tensor crow, Tensor col, Tensor plan_t, int[] geometry, int block_rows) "
      "-> Tensor");
  // All gradients (d_x, d_values, d_bias), with one pass over g; d_bias is empty unless there is a bias.
  m.def(
      "conv2d_backward(Tensor g, Tensor x, Tensor values, Tensor crow, Tensor col, Tensor plan_t, int[] geometry, "
      "bool bias=True) -> (Tensor, Tensor, Tensor)");

  // y = relu(batch_norm(x) + residual) with the statistics of the batch: (y, mean, biased variance). These and, as
  // weight and bias may be, their gradients are float32 for bfloat16.
  m.def(
      "batch_norm_act(Tensor x, Tensor? weight, Tensor? bias, Tensor? residual, float eps, bool relu, "
      "bool? batch_inner=None) -> (Tensor, Tensor, Tensor)");
  // The same with statistics that are given.
  m.def(
      "batch_norm_act_eval(Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, Tensor? residual, "
      "float eps, bool relu, bool? batch_inner=None) -> Tensor");
  // (d_x, d_residual, d_weight, d_bias). The mask of the ReLU is that of the output y, which is needed where there
  // was a residual. training: the statistics are those of the batch. d_residual is empty unless needed.
  m.def(
      "batch_norm_act_backward(Tensor g, Tensor x, Tensor? weight, Tensor? bias, Tensor mean, Tensor var, Tensor? "
      "y, "
      "float eps, bool relu, bool training, bool needs_residual) -> (Tensor, Tensor, Tensor, Tensor)");
}
