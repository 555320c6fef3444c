// A plan: the pattern of a sparse weight, rearranged once in the order in which the kernels visit it.
//
// Columns are cut into blocks whose packed activations fit a cache. Within a block, rows with the same number of
// nonzeros form a group (rows ascending), so that kernels know the trip count of every inner loop. A plan is one
// int32 tensor, so that it travels through torch like any other:
//
//   header | row_start [rows + 1] | groups | row of every segment | offset [nnz] | source
//
// A segment is one row within one column block. `source` says which element of `values` a nonzero is: one number a
// nonzero in the plan of a transpose, but one a segment in that of W itself, whose segments are runs of `values`.
#pragma once
#include <cstdint>

namespace sparseprune {

struct PlanHeader {
  static constexpr int32_t expected_magic = 0x53503031;
  int32_t magic;
  int32_t rows;
  int32_t cols;
  int32_t nnz;
  int32_t block_cols;  // columns of a block (the last one may have fewer)
  int32_t groups;
  int32_t segments;
  int32_t source_is_runs;  // bool: `source` [segments], first element of each run; else [nnz]
};

struct PlanGroup {
  int32_t block;
  int32_t count;          // nonzeros of every segment
  int32_t first_segment;  // index into the segment rows
  int32_t segments;
  int32_t first_nonzero;  // index into offset
};

struct PlanView {
  PlanHeader header;
  const int32_t* row_start;
  const PlanGroup* groups;
  const int32_t* segment_row;
  const int32_t* offset;
  const int32_t* source;

  static int64_t size(const PlanHeader& h) {
    return int64_t(sizeof(PlanHeader) / 4) + h.rows + 1 + int64_t(h.groups) * (sizeof(PlanGroup) / 4) +
           h.segments + int64_t(h.nnz) + (h.source_is_runs ? h.segments : h.nnz);
  }

  // The caller has checked that `data` holds size(header) numbers.
  explicit PlanView(const int32_t* data) : header(*reinterpret_cast<const PlanHeader*>(data)) {
    row_start = data + sizeof(PlanHeader) / 4;
    groups = reinterpret_cast<const PlanGroup*>(row_start + header.rows + 1);
    segment_row = reinterpret_cast<const int32_t*>(groups + header.groups);
    offset = segment_row + header.segments;
    source = offset + header.nnz;
  }
};

}  // namespace sparseprune
