// Operator conv2d: y = conv(x, W) + bias.
//
// The image is cut into tiles (cpu/conv/tile.h). A thread packs one tile of x and runs all rows of W over it: row
// r of a group's pattern gives V channels of the tile's results. What is added to an output element, and in which
// order, is fixed by the pattern and the shapes alone: the same bits at any number of threads.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "cpu/conv/operands.h"

namespace sparseprune {
namespace {

template <class Element>
struct Conv {
  const Axis& down;
  const Axis& across;
  const Tiling& tiling;
  int32_t rows;  // of blocks, of a group
  int block_rows;
  const int32_t* start;
  const int32_t* offset;
  const Sum<Element>* value;
  const Sum<Element>* bias;
  int64_t samples;
  Images<Element> y;

  // Results of rows of blocks begin .. end of a group, from a packed tile.
  void run(const Sum<Element>* tile, Place place, Range range) const {
    const auto [panel, group, top, left] = place;
    const Tiling& t = tiling;
    const int64_t height = std::min(t.height, down.results - top),
                  width = std::min(t.width, across.results - left);
    const int64_t n = t.run(height, width), runs = t.lanes_are_samples() ? height : 1;
    const int64_t first_sample = panel * t.lanes;
    const int in_panel = t.samples_in(panel, samples);
    const bool in_place = t.in_place(y, y.column_stride, in_panel, n, width);
    for (int32_t row = range.begin; row < range.end;) {
      const int32_t end = std::min(row + std::max(rows_at_once / block_rows, 1), range.end), count = end - row;
      const int64_t channel = (group * rows + row) * block_rows;
      const OffsetRows pattern{start + group * rows + row, count, offset};
      const Sum<Element>* b = bias ? bias + channel : nullptr;
      for (int64_t r = 0; r < runs; ++r) {
        const Sum<Element>* x = tile + r * t.columns * t.lanes;
        if constexpr (std::is_same_v<Element, Sum<Element>>)
          if (in_place) {
            kernels<Element>().conv(pattern, block_rows, value, x, int(n), b,
                                    {y.at(first_sample, channel, top + r, left), y.channel_stride, y.column_stride,
                                     t.lanes_in_place(n)});
            continue;
          }
        Sum<Element>* sums = workspace<Sum<Element>>(row_tile, count * block_rows * n, 1).data;
        kernels<Element>().conv(pattern, block_rows, value, x, int(n), b, {sums, n, 0, int(n)});
        for (int64_t c = 0; c < count * block_rows; ++c)
          unpack_run(t, sums + c * n, height, width, y.at(first_sample, channel + c, top + r, left), y.row_stride,
                     y.column_stride, in_panel);
      }
      row = end;
    }
  }

 private:
  // Rows visited for one run of numbers after the other: enough to use again what is in the L1 cache of the tile.
  static constexpr int32_t rows_at_once = 16;
};

template <class Element>
void run_conv(const ConvGeometry& g, const Axis& down, const Axis& across, const Tensor& values,
              const Tensor& crow, const Tensor& col, const Sum<Element>* bias, const Tensor& x, const Tensor& y) {
  const int64_t samples = x.size(0), block_rows = values.size(1);
  const int32_t all_rows = int32_t(crow.numel() - 1), rows = all_rows / int32_t(g.groups);
  const Tiling tiling = tiling_of(down, across, g.group_channels(), samples, sizeof(Sum<Element>));
  const Tensor starts = torch::stable::contiguous(crow), columns = torch::stable::contiguous(col);
  const Tensor offsets = torch::stable::new_empty(columns, {columns.numel()});
  const int32_t* start = starts.const_data_ptr<int32_t>();
  check_starts("conv2d", start, all_rows, columns.numel());
  check(look_up(offset_table("conv2d", tiling, down, across, g.group_channels(), 1),
                columns.const_data_ptr<int32_t>(), columns.numel(), offsets.mutable_data_ptr<int32_t>()),
        "conv2d: expected col within 0 .. ", g.cols() - 1, " (weight columns), got another index");
  const Tensor value = widened_copy<Element>(values);
  const Conv<Element> conv{down,
                           across,
                           tiling,
                           rows,
                           int(block_rows),
                           start,
                           offsets.const_data_ptr<int32_t>(),
                           data_of<Sum<Element>>(value),
                           bias,
                           samples,
                           mutable_images<Element>(y)};
  const int64_t items = tiling.panels * g.groups * tiling.tiles();
  const int64_t multiplications = values.numel() * samples * down.results * across.results;
  const int64_t threads = multiplications < serial_work ? 1 : int64_t(torch::stable::get_num_threads());
  // Whole tiles where they can be dealt out evenly enough; otherwise every tile's rows are divided too.
  const int64_t parts = items % threads == 0 || items > 8 * threads ? 1 : threads;
  torch::stable::parallel_for(0, items * parts, 1, [&](int64_t begin, int64_t end) {
    PackedTile<Element> packed{images<Element>(x), samples, down, across, tiling};
    for (int64_t item = begin; item < end; ++item) {
      const Place place = tiling.place_of(item / parts, g.groups);
      const int32_t* from = start + place.group * rows;
      conv.run(packed.get(place), place, rows_of_part(rows, block_rows, item % parts, parts, [&](int32_t row) {
                 return int64_t(from[row] - from[0]);
               }));
    }
  });
}

Tensor conv2d(const Tensor& x, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor& plan_t,
              std::vector<int64_t> geometry, const std::optional<Tensor>& bias, std::optional<bool> batch_inner) {
  const ConvGeometry g = ConvGeometry::from("conv2d", geometry);
  const ScalarType type = check_floating("conv2d", "x", x);
  check_images("conv2d", "x", x, type, g.in_channels, "in_channels");
  check_conv_values("conv2d", values, col, type);
  check_block_rows("conv2d", values.size(1));
  const int64_t channels = check_conv_pattern("conv2d", crow, col, g, values.size(1));
  if (bias) {
    check_type("conv2d", "bias", *bias, type);
    check_vector("conv2d", "bias", *bias, channels, "out_channels");
  }
  const int64_t height = g.output_size("conv2d", 0, x.size(2)), width = g.output_size("conv2d", 1, x.size(3));
  const bool inner = batch_inner.value_or(is_batch_inner_images(x));
  const Tensor input = for_kernels(x);
  if (g.pointwise())
    if (const auto row = as_one_row(input)) {
      const Tensor y = conv2d(*row, values, crow, col, plan_t, geometry, bias, false);
      return in_layout(from_one_row(y, x.size(0), height, width), inner);
    }
  const Tensor y = new_images(x, x.size(0), channels, height, width, x.size(0) >= few_samples);
  if (y.numel() > 0) {
    const Axis down = Axis::forward(g, 0, x.size(2), height), across = Axis::forward(g, 1, x.size(3), width);
    dispatch(type, [&](auto zero) {
      using Element = decltype(zero);
      const std::optional<Tensor> sums = bias ? std::optional(widened_copy<Element>(*bias)) : std::nullopt;
      run_conv<Element>(g, down, across, values, crow, col, sums ? data_of<Sum<Element>>(*sums) : nullptr, input,
                        y);
    });
  }
  return in_layout(y, inner);
}

Tensor conv2d_plan(const Tensor& crow, const Tensor& col, std::vector<int64_t> geometry, int64_t block_rows) {
  return make_conv_plan(crow, col, ConvGeometry::from("conv2d_plan", geometry), block_rows);
}

}  // namespace
}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, m) {
  m.impl("conv2d_plan", TORCH_BOX(&sparseprune::conv2d_plan));
  m.impl("conv2d", TORCH_BOX(&sparseprune::conv2d));
}
