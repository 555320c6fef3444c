// Products of a sparse matrix, over tensors: for linear layers, and for convolutions of single pixels. All tensors
// are contiguous and on one device; the dense ones hold rows of `samples` numbers.
#pragma once
#include "cuda/linear/spmm.cuh"
#include "cuda/tensors.h"

namespace sparseprune::cuda {

// y = W x + bias, and its maximum with 0 if relu
void multiply(const Rows& by_rows, const Tensor& values, const Tensor& x, int64_t samples,
              const std::optional<Tensor>& bias, bool relu, const Tensor& y, cudaStream_t stream);

// d_x = W^T g, with the pattern by columns; `source` says which block of values a nonzero is
void multiply_transposed(const Rows& by_columns, const int32_t* source, const Tensor& values, const Tensor& g,
                         int64_t samples, const Tensor& d_x, cudaStream_t stream);

// d_values = (g x^T) at the nonzeros of W
void multiply_sampled(const Rows& by_rows, const Tensor& g, const Tensor& x, int64_t samples,
                      const Tensor& d_values, cudaStream_t stream);

// d_bias = the sum over each row of g, or of g where y > 0, which goes to `gated`
void sum_rows(const Tensor& g, const std::optional<Tensor>& y, int64_t samples, const std::optional<Tensor>& gated,
              const Tensor& d_bias, cudaStream_t stream);

}  // namespace sparseprune::cuda
