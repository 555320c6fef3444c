// From torch's tensors to what kernels see, and where operators register and check: on a GPU, or emulated.
#pragma once
#include <torch/csrc/stable/library.h>

#include <optional>
#include <vector>

#include "common/checks.h"
#include "common/layout.h"
#include "cuda/device.cuh"

#ifdef __CUDACC__
#define REGISTER_FOR_CUDA(m) STABLE_TORCH_LIBRARY_IMPL(sparseprune, CUDA, m)
#else
#define REGISTER_FOR_CUDA(m) STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, m)
#endif

namespace sparseprune::cuda {

#ifdef __CUDACC__
using Here = OnGpu<false>;
#else
using Here = OnGpu<true>;
#endif

template <class T>
const T* data_of(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
T* mutable_data_of(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <class T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t ? data_of<T>(*t) : nullptr;
}

// Calls f(a number of the tensors' type).
template <class F>
void dispatch(ScalarType type, F f) {
  type == ScalarType::Half ? f(Half{}) : type == ScalarType::BFloat16 ? f(BFloat16{}) : f(float{});
}

// Calls f(V as a constant).
template <class F>
void for_block_rows(int64_t V, F f) {
  switch (V) {
    case 1:
      return f(std::integral_constant<int, 1>{});
    case 2:
      return f(std::integral_constant<int, 2>{});
    case 4:
      return f(std::integral_constant<int, 4>{});
    case 8:
      return f(std::integral_constant<int, 8>{});
    default:
      return f(std::integral_constant<int, 16>{});
  }
}

// Workspaces: never null, and never of a size that depends on the numbers.
inline Tensor new_floats(const Tensor& like, int64_t n) {
  return torch::stable::new_empty(like, {n + 1}, ScalarType::Float);
}

}  // namespace sparseprune::cuda
