#include "common/conv_plan.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>

#include <numeric>

#include "common/checks.h"
#include "common/pattern.h"

namespace sparseprune {

Tensor make_conv_plan(const Tensor& crow, const Tensor& col, const ConvGeometry& g, int64_t block_rows) {
  check_block_rows("conv2d_plan", block_rows);
  const Tensor crow_c = torch::stable::contiguous(crow), col_c = torch::stable::contiguous(col);
  const Csr pattern = checked_pattern("conv2d_plan", crow_c, col_c, g.cols(), block_rows);
  check(pattern.rows % g.groups == 0, "conv2d_plan: expected rows of blocks divisible by groups (", g.groups,
        "), got ", pattern.rows, "; use smaller blocks");
  check(ConvPlanView::rows_of(g) < INT32_MAX,
        "conv2d_plan: expected fewer than 2^31 in_channels x phases of the input that the kernel reaches, got ",
        g.in_channels, " x ", g.phases());
  check(product({pattern.rows / g.groups, g.taps()}) <= INT32_MAX,
        "conv2d_plan: expected fewer than 2^31 weights of an input channel, out_channels / groups / ", block_rows,
        " x kernel_size, got ", pattern.rows / g.groups, " x ", g.kernel[0], " x ", g.kernel[1]);
  const ConvPlanHeader header{ConvPlanHeader::expected_magic, int32_t(block_rows), pattern.rows, pattern.nnz,
                              g.as_numbers()};
  const Tensor plan = torch::stable::new_empty(crow, {ConvPlanView::size(header, g)}, ScalarType::Int);
  int32_t* data = plan.mutable_data_ptr<int32_t>();
  *reinterpret_cast<ConvPlanHeader*>(data) = header;
  const ConvPlanView view(data, g);
  int32_t* start = const_cast<int32_t*>(view.start);
  int32_t* index = const_cast<int32_t*>(view.index);
  int32_t* source = const_cast<int32_t*>(view.source);

  // Counting sort by row of the plan.
  const int64_t taps = g.taps(), channels = g.group_channels();
  const int32_t rows_of_group = pattern.rows / int32_t(g.groups);
  const int64_t phases = g.phases();
  const auto for_nonzeros = [&](auto visit) {  // visit(row of the plan, nonzero, block row within its group, tap)
    for (int32_t r = 0; r < pattern.rows; ++r) {
      const int64_t group = r / rows_of_group;
      for (int32_t p = pattern.start[r]; p < pattern.start[r + 1]; ++p) {
        const int64_t channel = pattern.col[p] / taps, tap = pattern.col[p] % taps;
        visit((group * phases + g.phase_number_of_tap(tap)) * channels + channel, p, r % rows_of_group, tap);
      }
    }
  };
  std::fill(start, start + view.rows + 1, 0);
  for_nonzeros([&](int64_t row, int32_t, int32_t, int64_t) { ++start[row + 1]; });
  std::partial_sum(start, start + view.rows + 1, start);
  std::vector<int32_t> next(start, start + view.rows);
  for_nonzeros([&](int64_t row, int32_t p, int32_t block_row, int64_t tap) {
    const int32_t q = next[row]++;
    index[q] = int32_t(block_row * taps + tap);
    source[q] = p;
  });
  return plan;
}

}  // namespace sparseprune
