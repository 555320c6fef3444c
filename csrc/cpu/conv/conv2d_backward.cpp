// Operators conv2d_t, conv2d_sddmm and conv2d_backward: the gradients of conv2d, over its transposed plan.
//
// Like conv2d, with tiles of g and rows that are input channels, of one phase of the input each
// (common/geometry.h): one load of g serves the input gradient and the dot product that is the weight's gradient.
// Tiles are divided into one group or two, whatever the number of threads, each with sums of its own for the
// weight's gradient; the threads of a group divide its rows. So all gradients have the same bits at any number of
// threads.
#include <torch/csrc/stable/library.h>

#include <optional>
#include <tuple>

#include "cpu/conv/operands.h"
#include "cpu/plan_order.h"

namespace sparseprune {
namespace {

// Where a result goes or an operand comes from; data is null where it is not wanted.
template <class Element>
struct ConvGradients {
  const ConvGeometry& g;
  const Axis& down;
  const Axis& across;
  const Tiling& tiling;
  const ConvPlanView& plan;
  const int32_t* offset;
  const Sum<Element>* value;
  int64_t samples, input_height, input_width;
  Images<const Element> x;
  Images<Element> d_x;
  Sum<Element>* d_value;  // of the group of tiles

  // The rows range of a group of channels, over a packed tile of g.
  void run(const Sum<Element>* tile, Place place, Range range) const {
    const auto [panel, group, top, left] = place;
    const int64_t channels = g.group_channels();
    for (int64_t phase = 0; phase < g.phases(); ++phase) {
      const int64_t first = phase * channels;
      const Range rows{int32_t(std::max<int64_t>(range.begin, first)),
                       int32_t(std::min<int64_t>(range.end, first + channels))};
      const int64_t at_h = phase / g.stride[1], at_w = phase % g.stride[1];
      const int64_t height = std::min(tiling.height, positions_of_phase(input_height, g.stride[0], at_h) - top);
      const int64_t width = std::min(tiling.width, positions_of_phase(input_width, g.stride[1], at_w) - left);
      if (rows.begin < rows.end && height > 0 && width > 0)
        run_phase(tile, panel, group, rows, first, {top * g.stride[0] + at_h, left * g.stride[1] + at_w}, height,
                  width);
    }
  }

 private:
  struct Position {
    int64_t h, w;
  };

  void run_phase(const Sum<Element>* tile, int64_t panel, int64_t group, Range rows, int64_t first_row,
                 Position at, int64_t height, int64_t width) const {
    const Tiling& t = tiling;
    const int64_t n = t.run(height, width), runs = t.lanes_are_samples() ? height : 1;
    const int64_t first_sample = panel * t.lanes;
    const int in_panel = t.samples_in(panel, samples);
    for (int32_t row = rows.begin; row < rows.end;) {
      const int32_t end = std::min(row + rows_at_once, rows.end), count = end - row;
      const int64_t channel = group * g.group_channels() + row - first_row;
      const OffsetRows pattern{plan.start + group * g.phases() * g.group_channels() + row, count, offset};
      for (int64_t r = 0; r < runs; ++r) {
        const Position from{at.h + r * g.stride[0], at.w};
        const auto in_place = [&](const auto& images) {
          return t.in_place(images, g.stride[1] * images.column_stride, in_panel, n, width);
        };
        Run<const Sum<Element>> x_run{};
        Run<Sum<Element>> d_x_run{};
        if constexpr (std::is_same_v<Element, Sum<Element>>) {
          if (d_value && in_place(x))
            x_run = {x.at(first_sample, channel, from.h, from.w), x.channel_stride, g.stride[1] * x.column_stride,
                     t.lanes_in_place(n)};
          if (value && in_place(d_x))
            d_x_run = {d_x.at(first_sample, channel, from.h, from.w), d_x.channel_stride,
                       g.stride[1] * d_x.column_stride, t.lanes_in_place(n)};
        }
        if (d_value && !x_run.data) {
          Sum<Element>* buffer = workspace<Sum<Element>>(row_tile, count * n, 1).data;
          for (int64_t c = 0; c < count; ++c)
            pack_run(first_sample, channel + c, from, height, width, in_panel, buffer + c * n, n);
          x_run = {buffer, n, 0, int(n)};
        }
        const bool unpack = value && !d_x_run.data;
        if (unpack) d_x_run = {workspace<Sum<Element>>(gradient_tile, count * n, 1).data, n, 0, int(n)};
        kernels<Element>().conv_gradients(pattern, plan.header.block_rows, value, tile + r * t.columns * t.lanes,
                                          t.phases * t.plane(), int(n), x_run, d_x_run, d_value);
        for (int64_t c = 0; unpack && c < count; ++c)
          unpack_run(t, d_x_run.data + c * n, height, width, d_x.at(first_sample, channel + c, from.h, from.w),
                     g.stride[0] * d_x.row_stride, g.stride[1] * d_x.column_stride, in_panel);
      }
      row = end;
    }
  }

  // x as the packed tile of g has its numbers: what lies between the rows of a tile whose lanes are pixels is
  // zero, since products with it are summed.
  void pack_run(int64_t sample, int64_t channel, Position at, int64_t height, int64_t width, int in_panel,
                Sum<Element>* to, int64_t n) const {
    const int64_t rows = tiling.lanes_are_samples() ? 1 : height;
    if (!tiling.lanes_are_samples()) std::fill_n(to, n, Sum<Element>(0));
    for (int64_t h = 0; h < rows; ++h)
      pack_row(x.at(sample, channel, at.h + h * g.stride[0], at.w), g.stride[1] * x.column_stride, width, in_panel,
               tiling.lanes, to + h * tiling.columns);
  }

  static constexpr int32_t rows_at_once = 16;  // as in conv2d.cpp
};

// Runs all tiles; null data of x or d_x: not wanted. The sums of weight gradients are [groups of tiles, nnz, V].
template <class Element>
void run_gradients(const ConvGeometry& g, const ConvPlanView& plan, const Tensor& grad, int64_t input_height,
                   int64_t input_width, const Sum<Element>* value, Images<const Element> x, Images<Element> d_x,
                   int64_t tile_groups, const Tiling& tiling, const Axis& down, const Axis& across,
                   Sum<Element>* d_value) {
  const int64_t V = plan.header.block_rows, samples = grad.size(0);
  const int64_t group_blocks = plan.header.rows_of_pattern / g.groups;
  const Tensor offsets = torch::stable::new_empty(grad, {plan.header.nnz}, ScalarType::Int);
  check(look_up(offset_table("conv2d_backward", tiling, down, across, group_blocks, V), plan.index,
                plan.header.nnz, offsets.mutable_data_ptr<int32_t>()),
        "conv2d_backward: expected a plan made by sparseprune::conv2d_plan, got one with other indices");
  if (d_value) std::fill_n(d_value, tile_groups * plan.header.nnz * V, Sum<Element>(0));
  const int64_t items = tiling.panels * g.groups * tiling.tiles();
  const int64_t multiplications = int64_t(plan.header.nnz) * V * samples * grad.size(2) * grad.size(3);
  const int64_t threads = multiplications < serial_work ? 1 : int64_t(torch::stable::get_num_threads());
  const int64_t parts = (threads + tile_groups - 1) / tile_groups;
  const int32_t rows = int32_t(g.phases() * g.group_channels());
  torch::stable::parallel_for(0, tile_groups * parts, 1, [&](int64_t begin, int64_t end) {
    PackedTile<Element> packed{images<Element>(grad), samples, down, across, tiling};
    for (int64_t share = begin; share < end; ++share) {
      const int64_t tile_group = share / parts, part = share % parts;
      const ConvGradients<Element> gradients{g,
                                             down,
                                             across,
                                             tiling,
                                             plan,
                                             offsets.const_data_ptr<int32_t>(),
                                             value,
                                             samples,
                                             input_height,
                                             input_width,
                                             x,
                                             d_x,
                                             d_value ? d_value + tile_group * plan.header.nnz * V : nullptr};
      for (int64_t item = items * tile_group / tile_groups; item < items * (tile_group + 1) / tile_groups;
           ++item) {
        const Place place = tiling.place_of(item, g.groups);
        const int32_t* from = plan.start + place.group * rows;
        gradients.run(packed.get(place), place, rows_of_part(rows, V, part, parts, [&](int32_t row) {
                        return int64_t(from[row] - from[0]);
                      }));
      }
    }
  });
}

struct Operands {
  ConvGeometry geometry;
  ConvPlanView plan;
  ScalarType type;
  int64_t height, width;  // of the input
};

Operands check_gradient(const char* op, const Tensor& grad, const Tensor& crow, const Tensor& col,
                        const Tensor& plan_t, const std::vector<int64_t>& geometry, int64_t height,
                        int64_t width) {
  const ConvGeometry g = ConvGeometry::from(op, geometry);
  const ConvPlanView plan = check_conv_plan(op, crow, col, plan_t, g);
  const ScalarType type = check_floating(op, "g", grad);
  check_images(op, "g", grad, type, check_conv_pattern(op, crow, col, g, plan.header.block_rows), "out_channels");
  const int64_t out_height = g.output_size(op, 0, height), out_width = g.output_size(op, 1, width);
  check(grad.size(2) == out_height && grad.size(3) == out_width, op, ": expected g of height and width ",
        out_height, " x ", out_width, " (the output's), got ", grad.size(2), " x ", grad.size(3));
  return {g, plan, type, height, width};
}

void check_values(const char* op, const Tensor& values, const Tensor& col, const Operands& operands) {
  check_conv_values(op, values, col, operands.type);
  check(values.size(1) == operands.plan.header.block_rows, op,
        ": expected values.shape[1] == ", operands.plan.header.block_rows, " (rows of a block of the plan), got ",
        values.size(1));
}

Operands check_with_input(const char* op, const Tensor& grad, const Tensor& x, const Tensor& crow,
                          const Tensor& col, const Tensor& plan_t, const std::vector<int64_t>& geometry) {
  check_images(op, "x", x, check_floating(op, "g", grad), ConvGeometry::from(op, geometry).in_channels,
               "in_channels");
  check(grad.dim() == 4 && grad.size(0) == x.size(0), op, ": expected x and g of as many samples, got ",
        shape_of(x), " and ", shape_of(grad));
  return check_gradient(op, grad, crow, col, plan_t, geometry, x.size(2), x.size(3));
}

struct Results {
  std::optional<Tensor> d_x, d_values;
};

// The gradients that are asked for: d_x where there are values, d_values where there is x.
Results compute(const Operands& o, const Tensor& grad, const std::optional<Tensor>& x,
                const std::optional<Tensor>& values) {
  const ConvGeometry& g = o.geometry;
  const int64_t samples = grad.size(0);
  const Tensor g_images = for_kernels(grad);
  const std::optional<Tensor> input = x ? std::optional(for_kernels(*x)) : std::nullopt;
  if (g.pointwise()) {
    const auto row_of_grad = as_one_row(g_images), row_of_x = input ? as_one_row(*input) : std::nullopt;
    if (row_of_grad && row_of_x.has_value() == x.has_value()) {
      Results results = compute({g, o.plan, o.type, 1, row_of_grad->size(3)}, *row_of_grad, row_of_x, values);
      if (results.d_x) results.d_x = from_one_row(*results.d_x, samples, o.height, o.width);
      return results;
    }
  }
  Results results;
  if (values) results.d_x = new_images(grad, samples, g.in_channels, o.height, o.width, samples >= few_samples);
  const Axis down = Axis::gradient(g, 0, o.height, grad.size(2)),
             across = Axis::gradient(g, 1, o.width, grad.size(3));
  dispatch(o.type, [&](auto zero) {
    using Element = decltype(zero);
    const PlanOrder order{o.plan.source, o.plan.header.nnz, o.plan.header.block_rows};
    const Tiling tiling = tiling_of(down, across, o.plan.header.rows_of_pattern / g.groups * order.block_rows,
                                    samples, sizeof(Sum<Element>));
    const int64_t tile_groups = tiling.panels * g.groups * tiling.tiles() > 1 ? 2 : 1;
    const std::optional<Tensor> value =
        values ? std::optional(in_plan_order<Element>(*values, order)) : std::nullopt;
    const std::optional<Tensor> sums =
        x ? std::optional(new_sums<Element>(tile_groups, order, grad)) : std::nullopt;
    if (sums && samples == 0)
      std::fill_n(mutable_data_of<Sum<Element>>(*sums), sums->numel(), Sum<Element>(0));
    else
      run_gradients<Element>(g, o.plan, g_images, o.height, o.width,
                             value ? data_of<Sum<Element>>(*value) : nullptr,
                             input ? images<Element>(*input) : Images<const Element>{},
                             results.d_x ? mutable_images<Element>(*results.d_x) : Images<Element>{}, tile_groups,
                             tiling, down, across, sums ? mutable_data_of<Sum<Element>>(*sums) : nullptr);
    if (sums) results.d_values = from_plan_order<Element>(*sums, tile_groups, order, grad);
  });
  return results;
}

Tensor conv2d_t(const Tensor& grad, const Tensor& values, const Tensor& crow, const Tensor& col,
                const Tensor& plan_t, std::vector<int64_t> geometry, std::vector<int64_t> input_size) {
  check(input_size.size() == 2, "conv2d_t: expected input_size to be [height, width], got ", input_size.size(),
        " numbers");
  const Operands operands =
      check_gradient("conv2d_t", grad, crow, col, plan_t, geometry, input_size[0], input_size[1]);
  check_values("conv2d_t", values, col, operands);
  return in_layout(*compute(operands, grad, std::nullopt, values).d_x, is_batch_inner_images(grad));
}

Tensor conv2d_sddmm(const Tensor& grad, const Tensor& x, const Tensor& crow, const Tensor& col,
                    const Tensor& plan_t, std::vector<int64_t> geometry, int64_t block_rows) {
  const Operands operands = check_with_input("conv2d_sddmm", grad, x, crow, col, plan_t, geometry);
  check(block_rows == operands.plan.header.block_rows,
        "conv2d_sddmm: expected block_rows == ", operands.plan.header.block_rows, " (the plan's), got ",
        block_rows);
  return *compute(operands, grad, x, std::nullopt).d_values;
}

std::tuple<Tensor, Tensor, Tensor> conv2d_backward(const Tensor& grad, const Tensor& x, const Tensor& values,
                                                   const Tensor& crow, const Tensor& col, const Tensor& plan_t,
                                                   std::vector<int64_t> geometry) {
  const Operands operands = check_with_input("conv2d_backward", grad, x, crow, col, plan_t, geometry);
  check_values("conv2d_backward", values, col, operands);
  const Results results = compute(operands, grad, x, values);
  const std::array<int64_t, 3> all_but_channels{0, 2, 3};
  return {in_layout(*results.d_x, is_batch_inner_images(x)), *results.d_values,
          torch::stable::sum(grad, all_but_channels)};
}

}  // namespace
}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, m) {
  m.impl("conv2d_t", TORCH_BOX(&sparseprune::conv2d_t));
  m.impl("conv2d_sddmm", TORCH_BOX(&sparseprune::conv2d_sddmm));
  m.impl("conv2d_backward", TORCH_BOX(&sparseprune::conv2d_backward));
}
