// Operator `plan`: from a CSR pattern of V x 1 blocks to the order in which the kernels visit it.
#include "plan.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <atomic>
#include <vector>

#include "check.h"
#include "kernels.h"

namespace sparseprune {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// Features of a block: 512 KB of packed float32, a quarter of the L2 of recent server cores, half of others'.
constexpr int32_t block_features = 2048;
constexpr int64_t row_grain = 64;

struct Csr {
  int32_t rows, cols, nnz;
  const int32_t* start;  // [rows + 1]
  const int32_t* col;    // [nnz]
};

void check_indices(const char* name, const Tensor& t) {
  check(t.is_cpu() && t.dim() == 1 && t.scalar_type() == ScalarType::Int, "plan: expected ", name,
        " to be a 1-D int32 CPU tensor, got ", t.dim(), " dimensions of ", name_of(t.scalar_type()),
        t.is_cpu() ? "" : " on another device");
}

// Throws unless row starts ascend and columns ascend within each row.
void check_pattern(const Csr& a) {
  check(a.start[0] == 0 && a.start[a.rows] == a.nnz,
        "plan: expected crow to run from 0 to col.shape[0] == ", a.nnz, ", got ", a.start[0], " to ",
        a.start[a.rows]);
  std::atomic<int32_t> first_bad{a.rows};
  torch::stable::parallel_for(0, a.rows, row_grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int32_t from = a.start[r], to = a.start[r + 1];
      bool good = 0 <= from && from <= to && to <= a.nnz;
      for (int32_t p = from; good && p < to; ++p)
        good = a.col[p] >= 0 && a.col[p] < a.cols && (p == from || a.col[p - 1] < a.col[p]);
      if (good) continue;
      int32_t bad = first_bad;
      while (r < bad && !first_bad.compare_exchange_weak(bad, int32_t(r))) {
      }
      return;
    }
  });
  const int32_t r = first_bad;
  if (r == a.rows) return;
  const int32_t from = a.start[r], to = a.start[r + 1];
  check(0 <= from && from <= to && to <= a.nnz, "plan: expected crow to ascend, but row ", r, " goes from ", from,
        " to ", to);
  for (int32_t p = from; p < to; ++p)
    check(a.col[p] >= 0 && a.col[p] < a.cols && (p == from || a.col[p - 1] < a.col[p]),
          "plan: expected columns of a row to ascend within 0 .. ", a.cols - 1, ", got ", a.col[p], " in row ", r);
}

// Rows and columns as the kernels see them, cut into blocks of equal width.
PlanHeader header_of(int32_t rows, int32_t cols, int32_t nnz, int64_t block_rows, bool transposed) {
  const int32_t most_cols = block_features / (transposed ? int32_t(block_rows) : 1);
  const int64_t blocks = std::max<int64_t>((int64_t(cols) + most_cols - 1) / most_cols, 1);
  const int64_t block_cols = std::max<int64_t>((cols + blocks - 1) / blocks, 1);
  return {PlanHeader::expected_magic, transposed,     int32_t(block_rows), rows, cols, nnz,
          int32_t(block_cols),        int32_t(blocks)};
}

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

// start[b, row] for the nonzeros first .. last of a row, whose columns are `col`; and the columns within blocks.
template <class Col>
void place_row(const PlanHeader& h, const Plan& plan, int64_t row, int32_t first, int32_t last, Col col) {
  int32_t p = first;
  for (int32_t b = 0; b < h.blocks; ++b) {
    plan.start[int64_t(b) * h.rows + row] = p;
    const int64_t first_col = int64_t(b) * h.block_cols, end_col = first_col + h.block_cols;
    for (; p < last && col(p) < end_col; ++p) plan.column[p] = uint16_t(col(p) - first_col);
  }
  plan.start[int64_t(h.blocks) * h.rows + row] = last;
}

Tensor plan_of_weight(const Csr& a, int64_t block_rows, const Tensor& like) {
  const PlanHeader header = header_of(a.rows, a.cols, a.nnz, block_rows, false);
  const Plan plan(header, like);
  torch::stable::parallel_for(0, a.rows, row_grain, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r)
      place_row(header, plan, r, a.start[r], a.start[r + 1], [&](int32_t p) { return a.col[p]; });
  });
  return plan.tensor;
}

Tensor plan_of_transpose(const Csr& a, int64_t block_rows, const Tensor& like) {
  const PlanHeader header = header_of(a.cols, a.rows, a.nnz, block_rows, true);
  const Plan plan(header, like);
  // Rows in parts, each part's nonzeros of a column after those of the parts before: next[part][column].
  const int64_t parts = std::clamp<int64_t>(a.nnz / 65536, 1, torch::stable::get_num_threads());
  const auto first_row = [&](int64_t part) { return int32_t(a.rows * part / parts); };
  std::vector<std::vector<int32_t>> next(parts);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      next[part].assign(a.cols, 0);
      for (int32_t p = a.start[first_row(part)]; p < a.start[first_row(part + 1)]; ++p) ++next[part][a.col[p]];
    }
  });
  std::vector<int32_t> first(int64_t(a.cols) + 1);
  int32_t total = 0;
  for (int32_t c = 0; c < a.cols; ++c) {
    first[c] = total;
    for (auto& counts : next) {
      const int32_t count = counts[c];
      counts[c] = total;
      total += count;
    }
  }
  first[a.cols] = total;
  std::vector<int32_t> row_of(a.nnz);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part)
      for (int32_t r = first_row(part); r < first_row(part + 1); ++r)
        for (int32_t p = a.start[r]; p < a.start[r + 1]; ++p) {
          const int32_t q = next[part][a.col[p]]++;
          row_of[q] = r;
          plan.source[q] = p;
        }
  });
  torch::stable::parallel_for(0, a.cols, row_grain, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c)
      place_row(header, plan, c, first[c], first[c + 1], [&](int32_t q) { return row_of[q]; });
  });
  return plan.tensor;
}

Tensor plan(const Tensor& crow, const Tensor& col, int64_t cols, int64_t block_rows, bool transposed) {
  check_indices("crow", crow);
  check(crow.numel() >= 1, "plan: expected crow to hold rows / block_rows + 1 numbers, got none");
  check_indices("col", col);
  check(block_rows == 1 || block_rows == 2 || block_rows == 4 || block_rows == 8 || block_rows == 16,
        "plan: expected block_rows to be 1, 2, 4, 8 or 16, got ", block_rows);
  check(cols >= 0 && cols <= INT32_MAX && (crow.numel() - 1) * block_rows <= INT32_MAX,
        "plan: expected fewer than 2^31 rows and columns (int32 indices), got ", (crow.numel() - 1) * block_rows,
        " x ", cols);
  check(col.numel() <= INT32_MAX, "plan: expected fewer than 2^31 nonzeros, got ", col.numel());
  const Tensor crow_c = torch::stable::contiguous(crow), col_c = torch::stable::contiguous(col);
  const Csr pattern{int32_t(crow.numel() - 1), int32_t(cols), int32_t(col.numel()),
                    crow_c.const_data_ptr<int32_t>(), col_c.const_data_ptr<int32_t>()};
  check_pattern(pattern);
  return transposed ? plan_of_transpose(pattern, block_rows, crow) : plan_of_weight(pattern, block_rows, crow);
}

}  // namespace
}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, m) { m.impl("plan", TORCH_BOX(&sparseprune::plan)); }
