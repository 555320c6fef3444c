// A call of a convolution, or of its gradients, checked: what holds on any device.
#pragma once
#include <optional>
#include <vector>

#include "common/checks.h"
#include "common/geometry.h"
#include "common/layout.h"

namespace sparseprune {

struct ConvCall {
  ConvGeometry geometry;
  ScalarType type;
  int64_t rows, block_rows, nnz;  // of the pattern: rows of blocks, rows of a block, blocks
  int64_t samples;
  ImageSize in, out;
  std::optional<Images> x, g;  // those that the operator got

  int64_t out_channels() const { return rows * block_rows; }
};

// Row starts and columns: their types and sizes. Who reads them checks their numbers.
template <class On>
void check_pattern_sizes(const Checks<On>& checks, const Tensor& crow, const Tensor& col, const ConvGeometry& g,
                         int64_t block_rows) {
  checks.is_indices("crow", crow);
  checks.is_indices("col", col);
  check(crow.dim() == 1 && col.dim() == 1 && crow.numel() >= 1 && (crow.numel() - 1) % g.groups == 0, checks.op,
        ": expected crow of out_channels / ", block_rows, " + 1 numbers, rows of blocks divisible by groups (",
        g.groups, "), and col of as many as there are blocks, got ", shape_of(crow), " and ", shape_of(col));
  check(product({crow.numel() - 1, block_rows}) <= INT32_MAX && col.numel() <= INT32_MAX, checks.op,
        ": expected fewer than 2^31 out_channels and blocks, got ", crow.numel() - 1, " x ", block_rows, " and ",
        col.numel());
}

template <class On>
ConvCall checked_convolution(const Checks<On>& checks, const Tensor& x, const Tensor& values, const Tensor& crow,
                             const Tensor& col, const std::vector<int64_t>& geometry,
                             const std::optional<Tensor>& bias) {
  const char* op = checks.op;
  const ConvGeometry g = ConvGeometry::from(op, geometry);
  checks.is_images("x", x, g.in_channels, "in_channels");
  const int64_t block_rows = checks.block_rows_of(values, col);
  check_block_rows(op, block_rows);
  check_pattern_sizes(checks, crow, col, g, block_rows);
  const int64_t rows = crow.numel() - 1;
  checks.is_bias(bias, rows * block_rows, "out_channels");
  const Images input(x);
  const ImageSize in{input.height, input.width}, out = g.output_size(op, in);
  check_numbers(op, "a result", {input.samples, rows * block_rows, out.height, out.width});
  return {g, checks.type, rows, block_rows, col.numel(), input.samples, in, out, input, {}};
}

// The gradients of a convolution of x, or of images of the size `in` where x is not needed.
template <class On>
ConvCall checked_gradients(const Checks<On>& checks, const Tensor& grad, const std::optional<Tensor>& x,
                           ImageSize in, const Tensor& crow, const Tensor& col, const ConvGeometry& g,
                           int64_t block_rows) {
  const char* op = checks.op;
  std::optional<Images> input;
  if (x) {
    checks.is_images("x", *x, g.in_channels, "in_channels");
    check(grad.dim() == 4 && grad.size(0) == x->size(0), op, ": expected x and g of as many samples, got ",
          shape_of(*x), " and ", shape_of(grad));
    input = Images(*x);
    in = {input->height, input->width};
  }
  check_pattern_sizes(checks, crow, col, g, block_rows);
  const int64_t rows = crow.numel() - 1;
  checks.is_images("g", grad, rows * block_rows, "out_channels");
  const Images g_images(grad);
  const ImageSize out = g.output_size(op, in);
  check(g_images.height == out.height && g_images.width == out.width, op, ": expected g of height and width ",
        out.height, " x ", out.width, " (the output's), got ", g_images.height, " x ", g_images.width);
  check_numbers(op, "a result", {g_images.samples, g.in_channels, in.height, in.width});
  return {g, checks.type, rows, block_rows, col.numel(), g_images.samples, in, out, input, g_images};
}

inline ImageSize checked_input_size(const char* op, const std::vector<int64_t>& input_size) {
  check(input_size.size() == 2, op, ": expected input_size to be [height, width], got ", input_size.size(),
        " numbers");
  return {input_size[0], input_size[1]};
}

}  // namespace sparseprune
