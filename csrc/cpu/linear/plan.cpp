// Operator `plan`: from a CSR pattern of V x 1 blocks to the order in which the kernels visit it.
#include "cpu/linear/plan.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <utility>
#include <vector>

#include "common/checks.h"
#include "common/pattern.h"

namespace sparseprune {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Features of a block. 2048 are 512 KB of packed float32: a quarter of the L2 of recent server cores, half of
// others'.
constexpr int64_t most_features = 2048;

// Unstructured SpMM is bound by the loads of x. Blocks of which more is found in the L1 cache pay as long as rows
// have many nonzeros in each, and as long as the pattern, visited block by block, stays in the L2 cache: 17 % at
// 1024 x 1024 and 80 % sparsity, but a loss at 95 %, and one third slower at 4096 x 4096.
constexpr int64_t features_near_l1 = 256, fewest_nonzeros_near_l1 = 32, most_nonzeros_near_l1 = 1 << 18;

int64_t features_of_block(int64_t rows, int64_t cols, int64_t nnz, int64_t block_rows, bool transposed) {
  const bool near_l1 = !transposed && block_rows == 1 && nnz <= most_nonzeros_near_l1 &&
                       nnz * features_near_l1 >= product({fewest_nonzeros_near_l1, rows, cols});
  return near_l1 ? features_near_l1 : most_features;
}

constexpr int64_t row_grain = 64;

struct Plan {
  Tensor tensor;
  int32_t* start;
  uint16_t* column;
  int32_t* source;

  Plan(const PlanHeader& header, const Tensor& like)
      : tensor(torch::stable::new_empty(like, {PlanView::size(header)}, ScalarType::Int)) {
    int32_t* data = tensor.mutable_data_ptr<int32_t>();
    *reinterpret_cast<PlanHeader*>(data) = header;
    const PlanView view(data);
    start = const_cast<int32_t*>(view.start);
    column = const_cast<uint16_t*>(view.column);
    source = const_cast<int32_t*>(view.source);
    if (header.nnz % 2) column[header.nnz] = 0;  // the plan is compared and saved as numbers
  }
};

Tensor plan_of_weight(const Csr& a, int64_t block_rows, const Tensor& like) {
  const PlanHeader header = header_of(a.rows, a.cols, a.nnz, block_rows, false);
  const Plan plan(header, like);
  torch::stable::parallel_for(0, a.rows, row_grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      int32_t p = a.start[r];
      for (int32_t b = 0; b < header.blocks; ++b) {
        plan.start[int64_t(b) * a.rows + r] = p;
        const int64_t first_col = int64_t(b) * header.block_cols, end_col = first_col + header.block_cols;
        for (; p < a.start[r + 1] && a.col[p] < end_col; ++p) plan.column[p] = uint16_t(a.col[p] - first_col);
      }
      plan.start[int64_t(header.blocks) * a.rows + r] = p;
    }
  });
  return plan.tensor;
}

// Counting sort of the nonzeros by block of rows, then by column. Threads share the columns' counts of one block
// by dividing its rows into parts: next[part, column] is where the part's next nonzero of that column goes.
Tensor plan_of_transpose(const Csr& a, int64_t block_rows, const Tensor& like) {
  const PlanHeader header = header_of(a.rows, a.cols, a.nnz, block_rows, true);
  const Plan plan(header, like);
  const int64_t parts = std::clamp<int64_t>(a.nnz / 65536, 1, torch::stable::get_num_threads());
  std::vector<int32_t> next(parts * a.cols);
  int32_t total = 0;
  for (int64_t b = 0; b < header.blocks; ++b) {
    const int64_t first = b * header.block_cols, rows = std::min<int64_t>(header.block_cols, a.rows - first);
    const auto for_rows_of_parts = [&](auto visit) {  // visit(row, the part's counts)
      torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
        for (int64_t part = begin; part < end; ++part)
          for (int64_t r = rows * part / parts; r < rows * (part + 1) / parts; ++r)
            visit(r, next.data() + part * a.cols);
      });
    };
    std::fill(next.begin(), next.end(), 0);
    for_rows_of_parts([&](int64_t r, int32_t* count) {
      for (int32_t p = a.start[first + r]; p < a.start[first + r + 1]; ++p) ++count[a.col[p]];
    });
    int32_t* start = plan.start + b * (int64_t(a.cols) + 1);
    for (int32_t c = 0; c < a.cols; ++c) {
      start[c] = total;
      for (int64_t part = 0; part < parts; ++part) total += std::exchange(next[part * a.cols + c], total);
    }
    start[a.cols] = total;
    for_rows_of_parts([&](int64_t r, int32_t* position) {
      for (int32_t p = a.start[first + r]; p < a.start[first + r + 1]; ++p) {
        const int32_t q = position[a.col[p]]++;
        plan.column[q] = uint16_t(r);
        plan.source[q] = p;
      }
    });
  }
  return plan.tensor;
}

}  // namespace

// Rows and columns as the kernels see them, cut into blocks of equal width.
PlanHeader header_of(int32_t rows, int32_t cols, int32_t nnz, int64_t block_rows, bool transposed) {
  const int64_t most_cols =
      features_of_block(rows, cols, nnz, block_rows, transposed) / (transposed ? block_rows : 1);
  if (transposed) std::swap(rows, cols);
  const int64_t blocks = std::max<int64_t>((int64_t(cols) + most_cols - 1) / most_cols, 1);
  const int64_t block_cols = std::max<int64_t>((cols + blocks - 1) / blocks, 1);
  return {PlanHeader::expected_magic, transposed,     int32_t(block_rows), rows, cols, nnz,
          int32_t(block_cols),        int32_t(blocks)};
}

Tensor make_plan(const Tensor& crow, const Tensor& col, int64_t cols, int64_t block_rows, bool transposed) {
  check_block_rows("plan", block_rows);
  const Tensor crow_c = torch::stable::contiguous(crow), col_c = torch::stable::contiguous(col);
  const Csr pattern = checked_pattern("plan", crow_c, col_c, cols, block_rows);
  return transposed ? plan_of_transpose(pattern, block_rows, crow) : plan_of_weight(pattern, block_rows, crow);
}

}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, m) { m.impl("plan", TORCH_BOX(&sparseprune::make_plan)); }
