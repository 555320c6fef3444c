// Operator `plan`: from a CSR pattern to the order in which the kernels visit it.
#include "plan.h"

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <vector>

#include "check.h"
#include "kernels.h"

namespace sparseprune {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Csr {
  int32_t rows, cols;
  std::vector<int32_t> row_start, col;
  std::vector<int32_t> source;  // element of `values` of each nonzero; empty where that is its own number
};

void check_indices(const char* name, const Tensor& t) {
  check(t.is_cpu() && t.dim() == 1 && t.scalar_type() == ScalarType::Int, "plan: expected ", name,
        " to be a 1-D int32 CPU tensor, got ", t.dim(), " dimensions of ", name_of(t.scalar_type()),
        t.is_cpu() ? "" : " on another device");
}

Csr read_pattern(const Tensor& crow, const Tensor& col, int64_t cols) {
  check_indices("crow", crow);
  check(crow.numel() >= 1, "plan: expected crow to hold rows + 1 numbers, got none");
  check_indices("col", col);
  constexpr int64_t most_cols = INT32_MAX / panel_width;
  check(cols >= 0 && cols <= most_cols && crow.numel() - 1 <= most_cols, "plan: expected at most ", most_cols,
        " rows and columns (int32 offsets), got ", crow.numel() - 1, " x ", cols);
  const Tensor crow_c = torch::stable::contiguous(crow), col_c = torch::stable::contiguous(col);
  const int32_t* start = crow_c.const_data_ptr<int32_t>();
  const int32_t* index = col_c.const_data_ptr<int32_t>();
  const int64_t nnz = col.numel();
  Csr csr{int32_t(crow.numel() - 1), int32_t(cols), {start, start + crow.numel()}, {index, index + nnz}, {}};
  check(nnz <= INT32_MAX && start[0] == 0 && start[csr.rows] == nnz,
        "plan: expected crow to run from 0 to col.shape[0] == ", nnz, ", got ", start[0], " to ", start[csr.rows]);
  for (int32_t r = 0; r < csr.rows; ++r) {
    check(start[r] <= start[r + 1] && start[r + 1] <= nnz, "plan: expected crow to ascend, but row ", r,
          " goes from ", start[r], " to ", start[r + 1]);
    for (int32_t p = start[r]; p < start[r + 1]; ++p)
      check(index[p] >= 0 && index[p] < cols && (p == start[r] || index[p - 1] < index[p]),
            "plan: expected columns of a row to ascend within 0 .. ", cols - 1, ", got ", index[p], " in row ", r);
  }
  return csr;
}

Csr transposed(const Csr& a) {
  Csr t{a.cols, a.rows, std::vector<int32_t>(a.cols + 1, 0), std::vector<int32_t>(a.col.size()),
        std::vector<int32_t>(a.col.size())};
  for (int32_t c : a.col) ++t.row_start[c + 1];
  for (int32_t c = 0; c < a.cols; ++c) t.row_start[c + 1] += t.row_start[c];
  std::vector<int32_t> next(t.row_start.begin(), t.row_start.end() - 1);
  for (int32_t r = 0; r < a.rows; ++r)
    for (int32_t p = a.row_start[r]; p < a.row_start[r + 1]; ++p) {
      const int32_t q = next[a.col[p]]++;
      t.col[q] = r;
      t.source[q] = p;
    }
  return t;
}

// Columns of a block: a power of two that gives a segment `nonzeros_per_segment` on average, since every segment
// loads and stores its output row once. At most 4096 (1 MB packed, half of an L2).
int32_t choose_block_cols(const Csr& a, double nonzeros_per_segment) {
  const double density = double(a.col.size()) / (double(a.rows) * a.cols);
  int32_t block = 128;
  while (block < 4096 && block * density < nonzeros_per_segment) block *= 2;
  return block;
}

// Measured, 1024 x 1024 at 90 and 95 %: with 12 the forward pass is 4 % faster than with 24, the backward pass,
// which loads two rows a segment, 5 % slower on two threads.
constexpr double nonzeros_per_segment_of_w = 12, nonzeros_per_segment_of_transpose = 24;

Tensor build(const Csr& a, double nonzeros_per_segment, const Tensor& like) {
  PlanHeader header{PlanHeader::expected_magic, a.rows, a.cols, int32_t(a.col.size()), 0, 0, 0, a.source.empty()};
  header.block_cols = a.col.empty() ? 128 : choose_block_cols(a, nonzeros_per_segment);

  std::vector<PlanGroup> groups;
  std::vector<int32_t> segment_row, offset, source;
  offset.reserve(a.col.size());
  std::vector<int32_t> next(a.row_start.begin(), a.row_start.end() - 1);  // first nonzero of a row not yet placed
  std::vector<int32_t> count(a.rows);
  for (int32_t block = 0; int64_t(block) * header.block_cols < a.cols; ++block) {
    const int32_t first_col = block * header.block_cols;
    const int32_t end_col = std::min(a.cols, first_col + header.block_cols);
    std::vector<int32_t> rows_with(end_col - first_col + 1, 0);
    for (int32_t r = 0; r < a.rows; ++r) {
      const auto begin = a.col.begin() + next[r], end = a.col.begin() + a.row_start[r + 1];
      count[r] = int32_t(std::lower_bound(begin, end, end_col) - begin);
      ++rows_with[count[r]];
    }
    // Groups in order of count; rows without nonzeros need no work.
    std::vector<int32_t> segment_of(rows_with.size(), 0), nonzero_of(rows_with.size(), 0);
    int32_t segment = int32_t(segment_row.size()), nonzero = int32_t(offset.size());
    for (int32_t n = 1; n < int32_t(rows_with.size()); ++n) {
      if (rows_with[n] == 0) continue;
      groups.push_back({block, n, segment, rows_with[n], nonzero});
      segment_of[n] = segment;
      nonzero_of[n] = nonzero;
      segment += rows_with[n];
      nonzero += rows_with[n] * n;
    }
    segment_row.resize(segment);
    offset.resize(nonzero);
    source.resize(header.source_is_runs ? segment : nonzero);
    for (int32_t r = 0; r < a.rows; ++r) {
      const int32_t n = count[r];
      if (n == 0) continue;
      if (header.source_is_runs) source[segment_of[n]] = next[r];
      segment_row[segment_of[n]++] = r;
      for (int32_t p = next[r]; p < next[r] + n; ++p) {
        offset[nonzero_of[n]] = (a.col[p] - first_col) * panel_width;
        if (!header.source_is_runs) source[nonzero_of[n]] = a.source[p];
        ++nonzero_of[n];
      }
      next[r] += n;
    }
  }

  header.groups = int32_t(groups.size());
  header.segments = int32_t(segment_row.size());
  const int64_t size = PlanView::size(header);
  Tensor plan = torch::stable::new_empty(like, {size}, ScalarType::Int);
  int32_t* out = plan.mutable_data_ptr<int32_t>();
  auto append = [&](const void* from, size_t numbers) {
    const int32_t* begin = static_cast<const int32_t*>(from);
    out = std::copy(begin, begin + numbers, out);
  };
  append(&header, sizeof(header) / 4);
  append(a.row_start.data(), a.row_start.size());
  append(groups.data(), groups.size() * (sizeof(PlanGroup) / 4));
  append(segment_row.data(), segment_row.size());
  append(offset.data(), offset.size());
  append(source.data(), source.size());
  return plan;
}

Tensor plan(const Tensor& crow, const Tensor& col, int64_t cols, bool of_transpose) {
  const Csr pattern = read_pattern(crow, col, cols);
  return of_transpose ? build(transposed(pattern), nonzeros_per_segment_of_transpose, crow)
                      : build(pattern, nonzeros_per_segment_of_w, crow);
}

}  // namespace
}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, m) { m.impl("plan", TORCH_BOX(&sparseprune::plan)); }
