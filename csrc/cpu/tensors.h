// From torch's tensors to what kernels see: pointers with strides, numbers of one type, sums of it.
#pragma once
#include <torch/headeronly/util/BFloat16.h>

#include <type_traits>

#include "common/checks.h"
#include "common/layout.h"
#include "cpu/kernels/kernels.h"

namespace sparseprune {

// Calls f(a number of this type).
template <class F>
auto dispatch(ScalarType type, F f) {
  return type == ScalarType::Double ? f(double{}) : type == ScalarType::BFloat16 ? f(BFloat16{}) : f(float{});
}

template <class Element>
const Element* data_of(const Tensor& t) {
  if constexpr (std::is_same_v<Element, BFloat16>)
    return reinterpret_cast<const BFloat16*>(t.const_data_ptr<torch::headeronly::BFloat16>());
  else
    return t.const_data_ptr<Element>();
}
template <class Element>
Element* mutable_data_of(const Tensor& t) {
  if constexpr (std::is_same_v<Element, BFloat16>)
    return reinterpret_cast<BFloat16*>(t.mutable_data_ptr<torch::headeronly::BFloat16>());
  else
    return t.mutable_data_ptr<Element>();
}

template <class Element>
constexpr ScalarType sum_type = std::is_same_v<Element, double> ? ScalarType::Double : ScalarType::Float;

constexpr int64_t copy_grain = 1 << 14;

// A tensor of Element as contiguous Sum<Element>: itself where it is that already.
template <class Element>
Tensor widened_copy(const Tensor& t) {
  const Tensor from = torch::stable::contiguous(t);
  if constexpr (std::is_same_v<Element, Sum<Element>>) return from;
  const Tensor to = torch::stable::new_empty(from, {t.numel()}, sum_type<Element>);
  const Element* in = data_of<Element>(from);
  Sum<Element>* out = mutable_data_of<Sum<Element>>(to);
  torch::stable::parallel_for(0, t.numel(), copy_grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) out[i] = widened(in[i]);
  });
  return to;
}

}  // namespace sparseprune
