// The plan of a convolution on a GPU: an int32 tensor without a header, as those of linear layers (linear/plan.h).
//
//   start [rows_t + 1] | index [nnz] | source [nnz] | order [rows_t] | order of the weight [rows]
//
// The rows_t rows of the transpose, and its nonzeros, are those of common/conv_plan.h.
#pragma once
#include "common/conv_plan.h"
#include "cuda/linear/spmm.cuh"

namespace sparseprune::cuda {

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

}  // namespace sparseprune::cuda
