// Operator conv2d: y = conv(x, W) + bias.
//
// The image is cut into tiles (tiling.h). A thread packs one tile of x and runs all rows of W over it: row
// r of a group's pattern gives V channels of the tile's results. What is added to an output element, and in which
// order, is fixed by the pattern and the shapes alone: the same bits at any number of threads.
#include <torch/csrc/stable/library.h>

#include <optional>

#include "common/conv_call.h"
#include "common/conv_plan.h"
#include "common/pattern.h"
#include "cpu/conv/tile.h"
#include "cpu/threads.h"

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
  ImageView<Element> y;

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

// The weight of a call, as the operator got it.
struct Weight {
  const Tensor &values, &crow, &col;
  const std::optional<Tensor>& bias;
};

template <class Element>
void run_conv(const ConvCall& call, const Weight& weight, const Images& x, const Images& y) {
  const ConvGeometry& g = call.geometry;
  const int64_t samples = x.samples, block_rows = call.block_rows;
  const int32_t all_rows = int32_t(call.rows), rows = all_rows / int32_t(g.groups);
  const Axis down = Axis::forward(g, 0, x.height, y.height), across = Axis::forward(g, 1, x.width, y.width);
  const Tiling tiling = tiling_of(down, across, g.group_channels(), samples, sizeof(Sum<Element>));
  const Tensor starts = torch::stable::contiguous(weight.crow), columns = torch::stable::contiguous(weight.col);
  const Tensor offsets = torch::stable::new_empty(columns, {call.nnz});
  const int32_t* start = starts.const_data_ptr<int32_t>();
  check_starts("conv2d", start, all_rows, call.nnz);
  check(look_up(offset_table("conv2d", tiling, down, across, g.group_channels(), 1),
                columns.const_data_ptr<int32_t>(), call.nnz, offsets.mutable_data_ptr<int32_t>()),
        "conv2d: expected col within 0 .. ", g.cols() - 1, " (weight columns), got another index");
  const Tensor value = widened_copy<Element>(weight.values);
  const std::optional<Tensor> bias =
      weight.bias ? std::optional(widened_copy<Element>(*weight.bias)) : std::nullopt;
  const Conv<Element> conv{down,
                           across,
                           tiling,
                           rows,
                           int(block_rows),
                           start,
                           offsets.const_data_ptr<int32_t>(),
                           data_of<Sum<Element>>(value),
                           bias ? data_of<Sum<Element>>(*bias) : nullptr,
                           samples,
                           mutable_view_of<Element>(y)};
  const int64_t items = tiling.panels * g.groups * tiling.tiles();
  const int64_t threads = worthwhile_threads({call.nnz, block_rows, samples, y.pixels()});
  // Whole tiles where they can be dealt out evenly enough; otherwise every tile's rows are divided too.
  const int64_t parts = items % threads == 0 || items > 8 * threads ? 1 : threads;
  torch::stable::parallel_for(0, items * parts, 1, [&](int64_t begin, int64_t end) {
    PackedTile<Element> packed{view_of<Element>(x), samples, down, across, tiling};
    for (int64_t item = begin; item < end; ++item) {
      const Place place = tiling.place_of(item / parts, g.groups);
      const int32_t* from = start + place.group * rows;
      conv.run(packed.get(place), place, rows_of_part(rows, block_rows, item % parts, parts, [&](int32_t row) {
                 return int64_t(from[row] - from[0]);
               }));
    }
  });
}

Tensor conv2d(const Tensor& x, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor&,
              std::vector<int64_t> geometry, const std::optional<Tensor>& bias, std::optional<bool> batch_inner) {
  const Checks<OnCpu> checks("conv2d", "x", x);
  const ConvCall call = checked_convolution(checks, x, values, crow, col, geometry, bias);
  const bool by_samples = vectors_of_samples(call.samples);

  const Images input = for_kernels(*call.x);
  const std::optional<Images> row = call.geometry.pointwise() ? as_one_row(input, by_samples) : std::nullopt;
  const Images& from = row ? *row : input;
  const ImageSize size = row ? ImageSize{1, row->width} : call.out;
  const Images to =
      new_images(x, from.samples, call.out_channels(), size.height, size.width, vectors_of_samples(from.samples));
  if (to.numel() > 0)
    dispatch(call.type, [&](auto zero) { run_conv<decltype(zero)>(call, {values, crow, col, bias}, from, to); });
  const Images y = row ? from_one_row(to, call.samples, call.out.height, call.out.width, by_samples) : to;
  return in_layout_by_kernels(y, batch_inner.value_or(call.x->batch_inner)).tensor;
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
