// A plan: the pattern of a sparse weight as the kernels visit it.
//
// Columns are cut into blocks whose packed activations fit the L2 cache; a row's nonzeros within a block are a
// run. A plan is one int32 tensor, so that it travels through torch like any other:
//
//   of a weight:        header | start [blocks + 1, rows]  | column [nnz] (16 bits each)
//   of its transpose:   header | start [blocks, rows + 1]  | column [nnz] (16 bits each) | source [nnz]
//
// `column` counts from its block's first column. The plan of a weight keeps the order of the pattern, row by row,
// so that kernels read `values` as they are; the nonzeros of row r in block b are start[b, r] .. start[b + 1, r].
// The plan of the transpose has the weight's columns as rows and its block rows as columns. Its nonzeros are in
// order of blocks, then rows: start[b, r] .. start[b, r + 1]; `source` says which block of `values` each of them
// is.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace sparseprune {

struct PlanHeader {
  static constexpr int32_t expected_magic = 0x53503032;
  int32_t magic;
  int32_t transposed;  // bool
  int32_t block_rows;  // V: a nonzero is a block of V rows x 1 column of the weight
  int32_t rows;
  int32_t cols;
  int32_t nnz;
  int32_t block_cols;  // columns of a block (the last one may have fewer)
  int32_t blocks;

  bool operator==(const PlanHeader&) const = default;
};

struct PlanView {
  PlanHeader header;
  const int32_t* start;
  const uint16_t* column;
  const int32_t* source;

  static int64_t starts(const PlanHeader& h) {
    return h.transposed ? h.blocks * (int64_t(h.rows) + 1) : (int64_t(h.blocks) + 1) * h.rows;
  }
  static int64_t column_words(const PlanHeader& h) { return (int64_t(h.nnz) + 1) / 2; }
  static int64_t size(const PlanHeader& h) {
    return int64_t(sizeof(PlanHeader) / 4) + starts(h) + column_words(h) + (h.transposed ? h.nnz : 0);
  }

  // The caller has checked that `data` holds size(header) numbers.
  explicit PlanView(const int32_t* data) : header(*reinterpret_cast<const PlanHeader*>(data)) {
    start = data + sizeof(PlanHeader) / 4;
    const int32_t* columns = start + starts(header);
    column = reinterpret_cast<const uint16_t*>(columns);
    source = columns + column_words(header);
  }

  // First nonzero of every row in a block, and one past the last.
  const int32_t* begin_of(int64_t block) const {
    return start + block * (header.transposed ? int64_t(header.rows) + 1 : header.rows);
  }
  const int32_t* end_of(int64_t block) const { return begin_of(block) + (header.transposed ? 1 : header.rows); }

  // Nonzeros of the rows before this one.
  int64_t nonzeros_before(int32_t row) const {
    if (!header.transposed) return row == 0 ? 0 : end_of(header.blocks - 1)[row - 1];
    int64_t sum = 0;
    for (int32_t b = 0; b < header.blocks; ++b) sum += begin_of(b)[row] - begin_of(b)[0];
    return sum;
  }
};

// The header of the plan of a pattern of `rows` x `cols` blocks of `block_rows` x 1, or of its transpose.
PlanHeader header_of(int32_t rows, int32_t cols, int32_t nnz, int64_t block_rows, bool transposed);

// The plan of a pattern of blocks of `block_rows` x 1, or of its transpose; the pattern is checked.
torch::stable::Tensor make_plan(const torch::stable::Tensor& crow, const torch::stable::Tensor& col, int64_t cols,
                                int64_t block_rows, bool transposed);

}  // namespace sparseprune
