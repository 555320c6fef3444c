// The operands of linear layers and of their gradients, checked against the weight: the same on any device.
#pragma once
#include "common/checks.h"
#include "common/layout.h"

namespace sparseprune {

// Of a sparse weight, in blocks of `block_rows` x 1, as its plan says.
struct WeightSize {
  int64_t rows, cols, nnz, block_rows;
};

template <class On>
Activation checked_input(const Checks<On>& checks, const Tensor& x, const WeightSize& weight) {
  checks.is_activation("x", x, weight.cols, "weight columns");
  check_numbers(checks.op, "a result", {weight.rows, x.size(1)});
  return Activation(x);
}

template <class On>
Activation checked_output_gradient(const Checks<On>& checks, const Tensor& g, const WeightSize& weight) {
  checks.is_activation("g", g, weight.rows, "weight rows");
  check_numbers(checks.op, "a result", {weight.cols, g.size(1)});
  return Activation(g);
}

template <class On>
Activation checked_input_of(const Activation& g, const Checks<On>& checks, const Tensor& x,
                            const WeightSize& weight) {
  const Activation input = checked_input(checks, x, weight);
  check(g.batch == input.batch, checks.op, ": expected x and g of one batch size, got ", input.batch, " and ",
        g.batch);
  return input;
}

// The output of a ReLU, whose gradient is g.
template <class On>
Activation checked_output_of(const Activation& g, const Checks<On>& checks, const Tensor& y) {
  checks.has_type("y", y, checks.type);
  check(y.dim() == 2 && y.size(0) == g.features && y.size(1) == g.batch, checks.op, ": expected y.shape == [",
        g.features, " (weight rows), ", g.batch, " (batch)], got ", shape_of(y));
  return Activation(y);
}

}  // namespace sparseprune
