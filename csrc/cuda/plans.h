// Plans are made on the CPU, once, and copied: rows in order of their length, and tensors to and from the device.
#pragma once
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <cstdint>
#include <numeric>

namespace sparseprune::cuda {

using torch::stable::Tensor;

// Rows by falling number of nonzeros, as they were among equals.
inline void fill_order(const int32_t* start, int32_t rows, int32_t* order) {
  std::iota(order, order + rows, 0);
  std::stable_sort(order, order + rows,
                   [&](int32_t a, int32_t b) { return start[a + 1] - start[a] > start[b + 1] - start[b]; });
}

inline Tensor on_cpu(const Tensor& t) {
  return torch::stable::contiguous(
      torch::stable::to(t, torch::stable::Device(torch::headeronly::DeviceType::CPU)));
}
inline Tensor on_device_of(const Tensor& like, const Tensor& t) {
  const Tensor result = torch::stable::new_empty(like, {t.numel()}, t.scalar_type());
  Tensor to = result;
  torch::stable::copy_(to, t);
  return result;
}

}  // namespace sparseprune::cuda
