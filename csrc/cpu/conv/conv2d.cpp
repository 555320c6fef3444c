// Operators conv2d: y = conv(x, W) + bias, and conv2d_act: y = relu(conv(x, W) + bias + residual).
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
  ImageView<const Element> residual;  // data is null where there is none
  bool relu;
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
    const auto lies_so = [&](const auto& images) {
      return t.in_place(images, images.column_stride, in_panel, n, width) &&
             images.channel_stride == y.channel_stride && images.column_stride == y.column_stride;
    };
    const bool in_place = lies_so(y) && (!residual.data || lies_so(residual));
    for (int32_t row = range.begin; row < range.end;) {
      const int32_t end = std::min(row + std::max(rows_at_once / block_rows, 1), range.end), count = end - row;
      const int64_t channel = (group * rows + row) * block_rows;
      const OffsetRows pattern{start + group * rows + row, count, offset};
      Epilogue<Sum<Element>> epilogue{nullptr, bias ? bias + channel : nullptr, relu};
      for (int64_t r = 0; r < runs; ++r) {
        const Sum<Element>* x = tile + r * t.columns * t.lanes;
        if constexpr (std::is_same_v<Element, Sum<Element>>)
          if (in_place) {
            if (residual.data) epilogue.add = residual.at(first_sample, channel, top + r, left);
            kernels<Element>().conv(pattern, block_rows, value, x, int(n), epilogue,
                                    {y.at(first_sample, channel, top + r, left), y.channel_stride, y.column_stride,
                                     t.lanes_in_place(n)});
            continue;
          }
        Sum<Element>* sums = workspace<Sum<Element>>(row_tile, count * block_rows * n, 1).data;
        if (residual.data) {
          // The sums take its place.
          for (int64_t c = 0; c < count * block_rows; ++c)
            pack_run(t, residual.at(first_sample, channel + c, top + r, left), residual.row_stride,
                     residual.column_stride, height, width, in_panel, sums + c * n);
          epilogue.add = sums;
        }
        kernels<Element>().conv(pattern, block_rows, value, x, int(n), epilogue, {sums, n, 0, int(n)});
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
  const char* op;
  const Tensor &values, &crow, &col;
  const std::optional<Tensor>& bias;
};

template <class Element>
void run_conv(const ConvCall& call, const Weight& weight, const Images& x, const Images* residual, bool relu,
              const Images& y) {
  const ConvGeometry& g = call.geometry;
  const int64_t samples = x.samples, block_rows = call.block_rows;
  const int32_t all_rows = int32_t(call.rows), rows = all_rows / int32_t(g.groups);
  const Axis down = Axis::forward(g, 0, x.height, y.height), across = Axis::forward(g, 1, x.width, y.width);
  const Tiling tiling = tiling_of(down, across, g.group_channels(), samples, sizeof(Sum<Element>));
  const Tensor starts = torch::stable::contiguous(weight.crow), columns = torch::stable::contiguous(weight.col);
  const Tensor offsets = torch::stable::new_empty(columns, {call.nnz});
  const int32_t* start = starts.const_data_ptr<int32_t>();
  check_starts(weight.op, start, all_rows, call.nnz);
  check(look_up(offset_table(weight.op, tiling, down, across, g.group_channels(), 1),
                columns.const_data_ptr<int32_t>(), call.nnz, offsets.mutable_data_ptr<int32_t>()),
        weight.op, ": expected col within 0 .. ", g.cols() - 1, " (weight columns), got another index");
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
                           residual ? view_of<Element>(*residual) : ImageView<const Element>{},
                           relu,
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

Images convolution(const ConvCall& call, const Weight& weight, const std::optional<Images>& residual, bool relu) {
  const bool by_samples = vectors_of_samples(call.samples);
  const auto run = [&](const Images& x, const Images* added, ImageSize size) {
    const Images y = new_images(x.tensor, x.samples, call.out_channels(), size.height, size.width,
                                vectors_of_samples(x.samples));
    if (y.numel() > 0)
      dispatch(call.type, [&](auto zero) { run_conv<decltype(zero)>(call, weight, x, added, relu, y); });
    return y;
  };
  const Images x = for_kernels(*call.x);
  const std::optional<Images> added = residual ? std::optional(for_kernels(*residual)) : std::nullopt;
  if (call.geometry.pointwise()) {
    const std::optional<Images> row = as_one_row(x, by_samples),
                                row_of_added = added ? as_one_row(*added, by_samples) : std::nullopt;
    if (row && row_of_added.has_value() == added.has_value())
      return from_one_row(run(*row, row_of_added ? &*row_of_added : nullptr, {1, row->width}), call.samples,
                          call.out.height, call.out.width, by_samples);
  }
  return run(x, added ? &*added : nullptr, call.out);
}

Tensor conv2d(const Tensor& x, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor&,
              std::vector<int64_t> geometry, const std::optional<Tensor>& bias, std::optional<bool> batch_inner) {
  const Checks<OnCpu> checks("conv2d", "x", x);
  const ConvCall call = checked_convolution(checks, x, values, crow, col, geometry, bias);
  const Images y = convolution(call, {checks.op, values, crow, col, bias}, std::nullopt, false);
  return in_layout_by_kernels(y, batch_inner.value_or(call.x->batch_inner)).tensor;
}

Tensor conv2d_act(const Tensor& x, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor&,
                  std::vector<int64_t> geometry, const std::optional<Tensor>& bias,
                  const std::optional<Tensor>& residual, bool relu, std::optional<bool> batch_inner) {
  const Checks<OnCpu> checks("conv2d_act", "x", x);
  const ConvCall call = checked_convolution(checks, x, values, crow, col, geometry, bias);
  if (residual) {
    checks.is_images("residual", *residual, call.out_channels(), "out_channels");
    check(residual->size(0) == call.samples && residual->size(2) == call.out.height &&
              residual->size(3) == call.out.width,
          "conv2d_act: expected residual.shape == ",
          Sizes{{call.samples, call.out_channels(), call.out.height, call.out.width}}, " (the output's), got ",
          shape_of(*residual));
  }
  const Images y = convolution(call, {checks.op, values, crow, col, bias},
                               residual ? std::optional(Images(*residual)) : std::nullopt, relu);
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
  m.impl("conv2d_act", TORCH_BOX(&sparseprune::conv2d_act));
}
