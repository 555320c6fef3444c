#include "common/pattern.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <atomic>
#include <stdexcept>

#include "common/checks.h"

namespace sparseprune {
namespace {

constexpr int64_t row_grain = 64;

void check_indices(const char* op, const char* name, const Tensor& t) {
  check(t.is_cpu() && t.dim() == 1 && t.scalar_type() == ScalarType::Int, op, ": expected ", name,
        " to be a 1-D int32 CPU tensor, got ", t.dim(), " dimensions of ", name_of(t.scalar_type()),
        t.is_cpu() ? "" : " on another device");
}

void check_row(const char* op, const Csr& a, int32_t r) {
  const int32_t from = a.start[r], to = a.start[r + 1];
  check(0 <= from && from <= to && to <= a.nnz, op, ": expected crow to ascend, but row ", r, " goes from ", from,
        " to ", to);
  for (int32_t p = from; p < to; ++p)
    check(a.col[p] >= 0 && a.col[p] < a.cols && (p == from || a.col[p - 1] < a.col[p]), op,
          ": expected columns of a row to ascend within 0 .. ", a.cols - 1, ", got ", a.col[p], " in row ", r);
}

void check_ends(const char* op, const int32_t* start, int32_t rows, int64_t nnz) {
  check(start[0] == 0 && start[rows] == nnz, op, ": expected crow to run from 0 to col.shape[0] == ", nnz,
        ", got ", start[0], " to ", start[rows]);
}

}  // namespace

void check_starts(const char* op, const int32_t* start, int32_t rows, int64_t nnz) {
  check_ends(op, start, rows, nnz);
  for (int32_t r = 0; r < rows; ++r)
    check(start[r] <= start[r + 1], op, ": expected crow to ascend, but row ", r, " goes from ", start[r], " to ",
          start[r + 1]);
}

// Row starts ascend and columns ascend within each row; of several bad rows, the first is named.
Csr checked_pattern(const char* op, const Tensor& crow, const Tensor& col, int64_t cols, int64_t block_rows) {
  check_indices(op, "crow", crow);
  check(crow.numel() >= 1, op, ": expected crow to hold rows / block_rows + 1 numbers, got none");
  check_indices(op, "col", col);
  check(cols >= 0 && cols <= INT32_MAX && (crow.numel() - 1) * block_rows <= INT32_MAX, op,
        ": expected fewer than 2^31 rows and columns (int32 indices), got ", (crow.numel() - 1) * block_rows,
        " x ", cols);
  check(col.numel() <= INT32_MAX, op, ": expected fewer than 2^31 nonzeros, got ", col.numel());
  const Csr a{int32_t(crow.numel() - 1), int32_t(cols), int32_t(col.numel()), crow.const_data_ptr<int32_t>(),
              col.const_data_ptr<int32_t>()};
  check_ends(op, a.start, a.rows, a.nnz);
  std::atomic<int32_t> first_bad{a.rows};
  torch::stable::parallel_for(0, a.rows, row_grain, [&](int64_t begin, int64_t end) {
    int32_t r = int32_t(begin);
    try {
      for (; r < end; ++r) check_row(op, a, r);
    } catch (const std::invalid_argument&) {  // must not leave the thread
      int32_t bad = first_bad;
      while (r < bad && !first_bad.compare_exchange_weak(bad, r)) {
      }
    }
  });
  if (first_bad < a.rows) check_row(op, a, first_bad);
  return a;
}

}  // namespace sparseprune
