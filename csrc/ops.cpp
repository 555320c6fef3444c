// Every operator of the library, one schema a line: the one list of what exists.
// Implementations register themselves beside their kernels (cpu/*.cpp, cuda/*.cu).
// sparseprune/fallback.py holds the same list in plain torch; a test compares the two.
//
// A sparse weight W [rows, cols] is values [nnz, 1], crow [rows + 1], col [nnz] (CSR). Activations are
// [features, batch] with any strides; results are batch-innermost in memory where the input is.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(sparseprune, m) {
  // Mask selection: exactly k True over all tensors together.
  m.def("topk_masks(Tensor[] scores, int k) -> Tensor[]");
  // What the kernels derive from a pattern, once: of W for spmm, of its transpose (plan_t) for the other three.
  // All four operators take both plans, since the derivative of one is another.
  m.def("plan(Tensor crow, Tensor col, int cols, bool transposed) -> Tensor");
  // y = W x + bias
  m.def(
      "spmm(Tensor x, Tensor values, Tensor crow, Tensor col, Tensor plan, Tensor plan_t, Tensor? bias=None) -> "
      "Tensor");
  // d_x = W^T g
  m.def(
      "spmm_t(Tensor g, Tensor values, Tensor crow, Tensor col, Tensor plan, Tensor plan_t, int cols) -> Tensor");
  // d_values = (g x^T) at the nonzeros of W
  m.def("sddmm(Tensor g, Tensor x, Tensor crow, Tensor col, Tensor plan, Tensor plan_t) -> Tensor");
  // Both gradients (d_x, d_values), with one pass over g.
  m.def(
      "spmm_backward(Tensor g, Tensor x, Tensor values, Tensor crow, Tensor col, Tensor plan, Tensor plan_t) -> "
      "(Tensor, Tensor)");
}
