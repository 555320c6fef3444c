// Operator plan on a GPU: made on the CPU once, and copied.
#include "common/pattern.h"
#include "cuda/linear/plan.h"
#include "cuda/plans.h"
#include "cuda/tensors.h"

namespace sparseprune::cuda {
namespace {

Tensor plan_of_weight(const Csr& a, const Tensor& like) {
  const Tensor plan = torch::stable::new_empty(like, {int64_t(a.rows)}, ScalarType::Int);
  fill_order(a.start, a.rows, plan.mutable_data_ptr<int32_t>());
  return plan;
}

Tensor plan_of_transpose(const Csr& a, const Tensor& like) {
  const Tensor plan = torch::stable::new_empty(like, {TransposedPlan::size(a.cols, a.nnz)}, ScalarType::Int);
  int32_t* start = plan.mutable_data_ptr<int32_t>();
  int32_t *index = start + a.cols + 1, *source = index + a.nnz, *order = source + a.nnz;
  // Counting sort of the nonzeros by column.
  std::fill(start, start + a.cols + 1, 0);
  for (int32_t j = 0; j < a.nnz; ++j) ++start[a.col[j] + 1];
  std::partial_sum(start, start + a.cols + 1, start);
  std::vector<int32_t> next(start, start + a.cols);
  for (int32_t r = 0; r < a.rows; ++r)
    for (int32_t j = a.start[r]; j < a.start[r + 1]; ++j) {
      const int32_t at = next[a.col[j]]++;
      index[at] = r;
      source[at] = j;
    }
  fill_order(start, a.cols, order);
  return plan;
}

Tensor plan(const Tensor& crow, const Tensor& col, int64_t cols, int64_t block_rows, bool transposed) {
  Here::check_device("plan", "crow", crow, col);
  Here::check_device("plan", "col", col, crow);
  return on_device_of(crow, plan_on_cpu(on_cpu(crow), on_cpu(col), cols, block_rows, transposed));
}

}  // namespace

Tensor plan_on_cpu(const Tensor& starts, const Tensor& columns, int64_t cols, int64_t block_rows,
                   bool transposed) {
  check_block_rows("plan", block_rows);
  const Csr pattern = checked_pattern("plan", starts, columns, cols, block_rows);
  return transposed ? plan_of_transpose(pattern, starts) : plan_of_weight(pattern, starts);
}

}  // namespace sparseprune::cuda

REGISTER_FOR_CUDA(m) { m.impl("plan", TORCH_BOX(&sparseprune::cuda::plan)); }
