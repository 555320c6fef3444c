// Values between the user's order and that of a transposed plan, whose `source` says which block of `values` each
// of its nonzeros is.
#pragma once
#include "cpu/tensors.h"

namespace sparseprune {

struct PlanOrder {
  const int32_t* source;
  int64_t nnz;
  int64_t block_rows;
};

// One number too many, so that the data of a pattern without nonzeros are not null, which would mean: not wanted.
inline int64_t never_null(int64_t numbers) { return numbers + 1; }

// Room for the sums of weight gradients: [groups, nnz, V].
template <class Element>
Tensor new_sums(int64_t groups, const PlanOrder& order, const Tensor& like) {
  return torch::stable::new_empty(like, {never_null(groups * order.nnz * order.block_rows)}, sum_type<Element>);
}

// values, in the order of the plan
template <class Element>
Tensor in_plan_order(const Tensor& values, const PlanOrder& order) {
  const int64_t V = order.block_rows;
  const Tensor contiguous = torch::stable::contiguous(values);
  const Tensor ordered = torch::stable::new_empty(values, {never_null(values.numel())}, sum_type<Element>);
  const Element* from = data_of<Element>(contiguous);
  Sum<Element>* to = mutable_data_of<Sum<Element>>(ordered);
  torch::stable::parallel_for(0, order.nnz, copy_grain / V, [&](int64_t begin, int64_t end) {
    if (V == 1)
      for (int64_t i = begin; i < end; ++i) to[i] = widened(from[order.source[i]]);
    else
      for (int64_t i = begin; i < end; ++i)
        for (int64_t v = 0; v < V; ++v) to[i * V + v] = widened(from[order.source[i] * V + v]);
  });
  return ordered;
}

// The groups' sums [groups, nnz, V] in the order of the plan, added up and put in the order of values.
template <class Element>
Tensor from_plan_order(const Tensor& sums, int64_t groups, const PlanOrder& order, const Tensor& like) {
  const int64_t V = order.block_rows, nnz = order.nnz;
  const Tensor values = torch::stable::new_empty(like, {nnz, V});
  const Sum<Element>* from = data_of<Sum<Element>>(sums);
  Element* to = mutable_data_of<Element>(values);
  torch::stable::parallel_for(0, nnz, copy_grain / V, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      for (int64_t v = 0; v < V; ++v) {
        Sum<Element> sum = from[i * V + v];
        for (int64_t group = 1; group < groups; ++group) sum += from[group * nnz * V + i * V + v];
        to[order.source[i] * V + v] = rounded<Element>(sum);
      }
  });
  return values;
}

}  // namespace sparseprune
