// What operators check of their arguments, on any device, and how activations lie in memory.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <string>

#include "common/checks.h"

namespace sparseprune {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// ---- checks ----

inline std::string shape_of(const Tensor& t) {
  std::string text;
  for (int64_t i = 0; i < t.dim(); ++i) text += (i ? ", " : "") + std::to_string(t.size(i));
  return "[" + text + "]";
}

inline void check_dtype(const char* op, const char* what, const Tensor& t, ScalarType expected) {
  check(t.scalar_type() == expected, op, ": expected ", what, " to be ", name_of(expected), ", got ",
        name_of(t.scalar_type()));
}

inline void check_activation(const char* op, const char* what, const Tensor& t, int64_t features,
                             const char* meaning) {
  check(t.dim() == 2 && t.size(0) == features, op, ": expected ", what, ".shape == [", features, " (", meaning,
        "), batch], got ", shape_of(t));
}

inline void check_images(const char* op, const char* what, const Tensor& t, int64_t channels,
                         const char* meaning) {
  check(t.dim() == 4 && t.size(1) == channels, op, ": expected ", what, ".shape == [samples, ", channels, " (",
        meaning, "), height, width], got ", shape_of(t));
}

inline void check_values(const char* op, const Tensor& values, int64_t nnz, int64_t block_rows) {
  check(values.dim() == 2 && values.size(0) == nnz && values.size(1) == block_rows, op,
        ": expected values.shape == [", nnz, " (nonzero blocks of the pattern), ", block_rows,
        " (rows of a block)], got ", shape_of(values));
}

inline void check_vector(const char* op, const char* what, const Tensor& t, int64_t size, const char* meaning) {
  check(t.dim() == 1 && t.size(0) == size, op, ": expected ", what, ".shape == [", size, " (", meaning, ")], got ",
        shape_of(t));
}

// ---- activations [features, batch] ----

inline bool is_batch_inner(const Tensor& x) { return x.stride(1) == 1 && x.stride(0) != 1; }

inline Tensor new_activation(const Tensor& like, int64_t features, int64_t batch, bool batch_inner) {
  if (batch_inner) return torch::stable::new_empty(like, {features, batch});
  return torch::stable::transpose(torch::stable::new_empty(like, {batch, features}), 0, 1);
}

// ---- images (N, C, H, W) ----

// Samples innermost and nothing between them: [C, H, W, N] in memory, where dimensions of size 1 do not count.
inline bool is_batch_inner_images(const Tensor& x) {
  if (x.size(0) <= 1) return false;
  int64_t stride = x.size(0);
  for (int dim = 3; dim >= 1; --dim) {
    if (x.size(dim) != 1 && x.stride(dim) != stride) return false;
    stride *= x.size(dim);
  }
  return x.stride(0) == 1;
}

// [C, H, W, N] as (N, C, H, W)
inline Tensor samples_first(const Tensor& x) {
  using torch::stable::transpose;
  return transpose(transpose(transpose(x, 0, 3), 1, 3), 2, 3);
}
inline Tensor samples_last(const Tensor& x) {
  using torch::stable::transpose;
  return transpose(transpose(transpose(x, 2, 3), 1, 3), 0, 3);
}

inline Tensor new_images(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w, bool batch_inner) {
  return batch_inner ? samples_first(torch::stable::new_empty(like, {c, h, w, n}))
                     : torch::stable::new_empty(like, {n, c, h, w});
}

// The same numbers in the other layout, or as they are where they have it: torch transposes matrices faster than
// it permutes.
inline Tensor images_in_layout(const Tensor& x, bool batch_inner) {
  using torch::stable::contiguous, torch::stable::transpose, torch::stable::view;
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3), features = c * h * w;
  if (is_batch_inner_images(x))
    return batch_inner ? x : view(contiguous(transpose(view(samples_last(x), {features, n}), 0, 1)), {n, c, h, w});
  const Tensor ordinary = contiguous(x);
  if (!batch_inner) return ordinary;
  return samples_first(view(contiguous(transpose(view(ordinary, {n, features}), 0, 1)), {c, h, w, n}));
}

}  // namespace sparseprune
