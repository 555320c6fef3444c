// Every operator of the library, one schema a line: the one list of what exists.
// Implementations register themselves beside their kernels (cpu/*.cpp, cuda/*.cu).
// sparseprune/fallback.py holds the same list in plain torch; a test compares the two.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(sparseprune, m) {
  // mask selection
  m.def("topk_masks(Tensor[] scores, int k) -> Tensor[]");
  // the pattern of a sparse weight, and what is derived from it once
  m.def("transpose_pattern(Tensor crow, Tensor col, int cols) -> (Tensor, Tensor, Tensor)");
  m.def("spmm_plan(Tensor crow, Tensor col, int cols) -> Tensor");
  m.def("sddmm_plan(Tensor crow, Tensor col, int cols) -> Tensor");
  // sparse compute
  m.def("spmm(Tensor x, Tensor values, Tensor crow, Tensor col, Tensor plan, Tensor? bias=None) -> Tensor");
  m.def("sddmm(Tensor g, Tensor x, Tensor crow, Tensor col, Tensor plan) -> Tensor");
}
