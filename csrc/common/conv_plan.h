// The plan of a convolution: its pattern by input channel, as its gradients visit it.
//
// One int32 tensor: header | start [rows + 1] | index [nnz] | source [nnz]. Rows are (group, number of a phase of
// the input, channel of the group): a tap adds to the gradient of one phase only, and phases that no tap reaches
// have no rows (common/geometry.h). Nonzeros of row r are start[r] .. start[r + 1], in the order of the pattern;
// `index` = block row within the group * taps + tap, `source` says which block of `values` it is.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>

#include "common/geometry.h"

namespace sparseprune {

struct ConvPlanHeader {
  static constexpr int32_t expected_magic = 0x53504331;
  int32_t magic;
  int32_t block_rows;       // V
  int32_t rows_of_pattern;  // output channels / V
  int32_t nnz;
  std::array<int32_t, ConvGeometry::numbers> geometry;
};

struct ConvPlanView {
  ConvPlanHeader header;
  int64_t rows;
  const int32_t* start;
  const int32_t* index;
  const int32_t* source;

  static int64_t rows_of(const ConvGeometry& g) { return g.in_channels * g.phases(); }
  static int64_t size(const ConvPlanHeader& h, const ConvGeometry& g) {
    return int64_t(sizeof(ConvPlanHeader) / 4) + rows_of(g) + 1 + 2 * int64_t(h.nnz);
  }

  ConvPlanView(const int32_t* data, const ConvGeometry& g)
      : header(*reinterpret_cast<const ConvPlanHeader*>(data)), rows(rows_of(g)) {
    start = data + sizeof(ConvPlanHeader) / 4;
    index = start + rows + 1;
    source = index + header.nnz;
  }
};

// The plan of a pattern of blocks of `block_rows` x 1, checked; all on the CPU.
torch::stable::Tensor make_conv_plan(const torch::stable::Tensor& crow, const torch::stable::Tensor& col,
                                     const ConvGeometry& g, int64_t block_rows);

}  // namespace sparseprune
