// A plan: the pattern of a sparse weight as the kernels visit it.
//
// Columns are cut into blocks whose packed activations fit the L2 cache. Nonzeros stay in the order of the pattern
// (row by row), so that a row's nonzeros in one block are a run of them. A plan is one int32 tensor, so that it
// travels through torch like any other:
//
//   header | start [blocks + 1, rows] | column [nnz] (16 bits each) | source [nnz] (plans of a transpose only)
//
// The nonzeros of row r in block b are start[b, r] .. start[b + 1, r]; `column` counts from the block's first
// column. The plan of the transpose has the weight's columns as rows and its block rows as columns; `source` says
// which block of `values` each of its nonzeros is.
#pragma once
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
};

struct PlanView {
  PlanHeader header;
  const int32_t* start;
  const uint16_t* column;
  const int32_t* source;

  static int64_t column_words(const PlanHeader& h) { return (int64_t(h.nnz) + 1) / 2; }
  static int64_t size(const PlanHeader& h) {
    return int64_t(sizeof(PlanHeader) / 4) + (int64_t(h.blocks) + 1) * h.rows + column_words(h) +
           (h.transposed ? h.nnz : 0);
  }

  // The caller has checked that `data` holds size(header) numbers.
  explicit PlanView(const int32_t* data) : header(*reinterpret_cast<const PlanHeader*>(data)) {
    start = data + sizeof(PlanHeader) / 4;
    const int32_t* columns = start + (int64_t(header.blocks) + 1) * header.rows;
    column = reinterpret_cast<const uint16_t*>(columns);
    source = columns + column_words(header);
  }
};

}  // namespace sparseprune
