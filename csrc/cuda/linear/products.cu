#include "cuda/linear/gate.cuh"
#include "cuda/linear/products.h"
#include "cuda/linear/sddmm_tensor_cores.cuh"
#include "cuda/linear/spmm_tensor_cores.cuh"

namespace sparseprune::cuda {

void multiply(const Rows& by_rows, const Tensor& values, const Tensor& x, int64_t samples,
              const std::optional<Tensor>& bias, bool relu, const Tensor& y, cudaStream_t stream) {
  dispatch(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    for_block_rows(values.size(1), [&](auto v) {
      launch_spmm<T, v.value>(by_rows, data_of<T>(values), data_of<T>(x), samples, data_or_null<T>(bias), relu,
                              mutable_data_of<T>(y), stream);
    });
  });
}

void multiply_transposed(const Rows& by_columns, const int32_t* source, const Tensor& values, const Tensor& g,
                         int64_t samples, const Tensor& d_x, cudaStream_t stream) {
  dispatch(g.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    for_block_rows(values.size(1), [&](auto v) {
      launch_spmm_t<T, v.value>(by_columns, source, data_of<T>(values), data_of<T>(g), samples,
                                mutable_data_of<T>(d_x), stream);
    });
  });
}

void multiply_sampled(const Rows& by_rows, const Tensor& g, const Tensor& x, int64_t samples,
                      const Tensor& d_values, cudaStream_t stream) {
  const Parts parts = parts_of(samples, by_rows.count);
  const Tensor workspace = new_floats(g, parts.count * d_values.numel());
  dispatch(g.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    for_block_rows(d_values.size(1), [&](auto v) {
      launch_sddmm<T, v.value>(by_rows, d_values.size(0), data_of<T>(g), data_of<T>(x), samples, parts,
                               mutable_data_of<float>(workspace), mutable_data_of<T>(d_values), stream);
    });
  });
}

void sum_rows(const Tensor& g, const std::optional<Tensor>& y, int64_t samples, const std::optional<Tensor>& gated,
              const Tensor& d_bias, cudaStream_t stream) {
  dispatch(g.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    launch_gate<T>(d_bias.numel(), data_of<T>(g), data_or_null<T>(y), samples,
                   gated ? mutable_data_of<T>(*gated) : nullptr, mutable_data_of<T>(d_bias), stream);
  });
}

}  // namespace sparseprune::cuda
