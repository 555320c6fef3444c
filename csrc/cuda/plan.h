// Plans on a GPU: int32 tensors without a header, since reading one would wait for the device; their sizes say
// what they belong to.
//
//   of a weight:        order [rows]
//   of its transpose:   start [cols + 1] | index [nnz] | source [nnz] | order [cols]
//   of a convolution:   start [rows_t + 1] | index [nnz] | source [nnz] | order [rows_t] | order of the weight
//   [rows]
//
// `order`: rows, or columns, by falling number of nonzeros. The transpose has the weight's columns as rows:
// nonzeros of column c are start[c] .. start[c + 1], `index` their block row, `source` which block of `values`
// they are; a convolution's are those of common/conv_plan.h. The pattern itself is read from crow and col.
#pragma once
#include <algorithm>
#include <numeric>

#include "common/conv_plan.h"
#include "cuda/operands.h"

namespace sparseprune::cuda {

struct TransposedPlan {
  Rows rows;
  const int32_t* source;

  static int64_t size(int64_t cols, int64_t nnz) { return 2 * cols + 1 + 2 * nnz; }

  TransposedPlan(const int32_t* plan, int32_t cols, int32_t nnz)
      : rows{plan, plan + cols + 1, plan + cols + 1 + 2 * int64_t(nnz), cols}, source(plan + cols + 1 + nnz) {}
};

struct ConvPlan {
  Rows rows;
  const int32_t* source;
  const int32_t* order_of_rows;  // of the weight

  static int64_t size(const ConvGeometry& g, int64_t rows, int64_t nnz) {
    return 2 * ConvPlanView::rows_of(g) + 1 + 2 * nnz + rows;
  }

  ConvPlan(const int32_t* plan, const ConvGeometry& g, int32_t nnz) {
    const int32_t count = int32_t(ConvPlanView::rows_of(g));
    const int32_t *index = plan + count + 1, *order = index + 2 * int64_t(nnz);
    rows = {plan, index, order, count};
    source = index + nnz;
    order_of_rows = order + count;
  }
};

// ---- making them ----

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
