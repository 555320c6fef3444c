// How activations lie in memory. Each is asked once in a call, by the structs below, which carry the answers
// along.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <optional>

#include "common/large_pages.h"

namespace sparseprune {

using torch::stable::Tensor;

// ---- activations of linear layers: [features, batch] ----

struct Activation {
  Tensor tensor;
  int64_t features, batch;
  int64_t feature_stride, batch_stride;

  explicit Activation(const Tensor& t) : tensor(t) {
    const auto sizes = t.sizes(), strides = t.strides();
    features = sizes[0], batch = sizes[1];
    feature_stride = strides[0], batch_stride = strides[1];
  }

  bool batch_inner() const { return batch_stride == 1 && feature_stride != 1; }
};

inline Tensor new_activation(const Tensor& like, int64_t features, int64_t batch, bool batch_inner) {
  if (batch_inner) return in_large_pages(torch::stable::new_empty(like, {features, batch}));
  return torch::stable::transpose(in_large_pages(torch::stable::new_empty(like, {batch, features})), 0, 1);
}

// The same numbers with features next to one another: a copy where they are not.
inline Tensor feature_inner(const Tensor& x) {
  using torch::stable::contiguous, torch::stable::transpose;
  return transpose(contiguous(transpose(x, 0, 1)), 0, 1);
}

// ---- images: (N, C, H, W) ----

struct Images {
  Tensor tensor;
  int64_t samples, channels, height, width;
  int64_t sample_stride, channel_stride, row_stride, column_stride;
  // Samples innermost and nothing between them: [C, H, W, N] in memory.
  bool batch_inner;

  explicit Images(const Tensor& t) : tensor(t) {
    const auto sizes = t.sizes(), strides = t.strides();
    samples = sizes[0], channels = sizes[1], height = sizes[2], width = sizes[3];
    sample_stride = strides[0], channel_stride = strides[1], row_stride = strides[2], column_stride = strides[3];
    // The strides of dimensions of size 1 do not count.
    batch_inner = samples > 1 && sample_stride == 1 && (width == 1 || column_stride == samples) &&
                  (height == 1 || row_stride == samples * width) &&
                  (channels == 1 || channel_stride == samples * width * height);
  }

  int64_t pixels() const { return height * width; }
  int64_t features() const { return channels * pixels(); }
  int64_t numel() const { return samples * features(); }
};

// [C, H, W, N] as (N, C, H, W)
inline Tensor samples_first(const Tensor& x) {
  using torch::stable::transpose;
  return transpose(transpose(transpose(x, 0, 3), 1, 3), 2, 3);
}
inline Tensor samples_last(const Tensor& x) {
  using torch::stable::transpose;
  return transpose(transpose(transpose(x, 2, 3), 1, 3), 0, 3);
}

inline Images new_images(const Tensor& like, int64_t n, int64_t c, int64_t h, int64_t w, bool batch_inner) {
  return Images(batch_inner ? samples_first(in_large_pages(torch::stable::new_empty(like, {c, h, w, n})))
                            : in_large_pages(torch::stable::new_empty(like, {n, c, h, w})));
}
inline Images new_images_like(const Images& x) {
  return new_images(x.tensor, x.samples, x.channels, x.height, x.width, x.batch_inner);
}

// The same numbers, batch-inner or ordinarily laid out; as they are where they lie so. Torch transposes matrices
// faster than it permutes.
inline Images in_layout(const Images& x, bool batch_inner) {
  using torch::stable::contiguous, torch::stable::transpose, torch::stable::view;
  const int64_t n = x.samples, c = x.channels, h = x.height, w = x.width;
  if (x.batch_inner && batch_inner) return x;
  if (x.batch_inner)
    return Images(view(contiguous(transpose(view(samples_last(x.tensor), {c * h * w, n}), 0, 1)), {n, c, h, w}));
  const Tensor ordinary = contiguous(x.tensor);
  if (!batch_inner) return Images(ordinary);
  const Tensor by_features = contiguous(transpose(view(ordinary, {n, c * h * w}), 0, 1));
  return Images(samples_first(view(by_features, {c, h, w, n})));
}

// ---- images of one row ----
//
// Where every pixel is computed on its own, it does not matter which of them are neighbours: rows that follow one
// another in memory are one row, and no lane of a vector is left empty at their ends.

// The pixels of each image as one row, next to one another, or, with samples innermost, those of all images as one
// row of one image. Nothing where rows do not follow one another, and where the images would be no different.
inline std::optional<Images> as_one_row(const Images& x, bool samples_innermost) {
  using torch::stable::view;
  if (x.numel() == 0) return std::nullopt;
  if (samples_innermost) {
    if (!x.batch_inner) return std::nullopt;
    return Images(view(samples_last(x.tensor), {1, x.channels, 1, x.pixels() * x.samples}));
  }
  if (x.height == 1 || x.row_stride != x.width * x.column_stride) return std::nullopt;
  const Images row(view(x.tensor, {x.samples, x.channels, 1, x.pixels()}));
  return row.column_stride == 1 ? row : in_layout(row, false);
}

// What as_one_row() made of images of this many samples and this size, as such images again.
inline Images from_one_row(const Images& y, int64_t samples, int64_t height, int64_t width,
                           bool samples_innermost) {
  using torch::stable::view;
  return Images(samples_innermost ? samples_first(view(y.tensor, {y.channels, height, width, samples}))
                                  : view(y.tensor, {samples, y.channels, height, width}));
}

}  // namespace sparseprune
