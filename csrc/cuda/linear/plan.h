// Plans of linear layers on a GPU: int32 tensors without a header, since reading one would wait for the device;
// their sizes say what they belong to.
//
//   of a weight:        order [rows]
//   of its transpose:   start [cols + 1] | index [nnz] | source [nnz] | order [cols]
//
// `order`: rows, or columns, by falling number of nonzeros. The transpose has the weight's columns as rows:
// nonzeros of column c are start[c] .. start[c + 1], `index` their block row, `source` which block of `values`
// they are. The pattern itself is read from crow and col.
#pragma once
#include "cuda/linear/spmm.cuh"
#include "cuda/plans.h"

namespace sparseprune::cuda {

struct TransposedPlan {
  Rows rows;
  const int32_t* source;

  static int64_t size(int64_t cols, int64_t nnz) { return 2 * cols + 1 + 2 * nnz; }

  TransposedPlan(const int32_t* plan, int32_t cols, int32_t nnz)
      : rows{plan, plan + cols + 1, plan + cols + 1 + 2 * int64_t(nnz), cols}, source(plan + cols + 1 + nnz) {}
};

// The plan of a pattern on the CPU, or of its transpose, in the CPU's memory; the pattern is checked.
Tensor plan_on_cpu(const Tensor& starts, const Tensor& columns, int64_t cols, int64_t block_rows, bool transposed);

}  // namespace sparseprune::cuda
