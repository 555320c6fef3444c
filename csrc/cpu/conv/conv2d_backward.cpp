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

#include "common/conv_call.h"
#include "common/conv_plan.h"
#include "common/known_plans.h"
#include "cpu/conv/tile.h"
#include "cpu/plan_order.h"
#include "cpu/threads.h"

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
  int32_t group_rows;  // of the plan, of a group of channels
  const int32_t* offset;
  const Sum<Element>* value;
  int64_t samples, input_height, input_width;
  ImageView<const Element> x;
  ImageView<Element> d_x;
  Sum<Element>* d_value;  // of the group of tiles

  // The rows range of a group of channels, over a packed tile of g.
  void run(const Sum<Element>* tile, Place place, Range range) const {
    const auto [panel, group, top, left] = place;
    const int64_t channels = g.group_channels(), phases_across = g.phases(1), phases = g.phases(0) * phases_across;
    for (int64_t phase = 0; phase < phases; ++phase) {
      const int64_t first = phase * channels;
      const Range rows{int32_t(std::max<int64_t>(range.begin, first)),
                       int32_t(std::min<int64_t>(range.end, first + channels))};
      const int64_t at_h = g.start_of_phase(0, phase / phases_across),
                    at_w = g.start_of_phase(1, phase % phases_across);
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
      const OffsetRows pattern{plan.start + group * group_rows + row, count, offset};
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
            pack_run(t, x.at(first_sample, channel + c, from.h, from.w), g.stride[0] * x.row_stride,
                     g.stride[1] * x.column_stride, height, width, in_panel, buffer + c * n);
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

  static constexpr int32_t rows_at_once = 16;  // as in conv2d.cpp
};

// What all gradients need: the plan by input channels, and the sizes of the call.
struct Operands {
  ConvCall call;
  ConvPlanView plan;

  PlanOrder order() const { return {plan.source, plan.header.nnz, plan.header.block_rows}; }
};

struct Results {
  std::optional<Images> d_x;
  std::optional<Tensor> d_values;
};

// Null value or x: without d_x, without d_value. The sums of weight gradients are [groups of tiles, nnz, V].
template <class Element>
void run_gradients(const Operands& o, const Images& grad, const Sum<Element>* value, const Images* x,
                   const Images* d_x, ImageSize input, const Axis& down, const Axis& across, const Tiling& tiling,
                   int64_t tile_groups, Sum<Element>* d_value) {
  const ConvGeometry& g = o.call.geometry;
  const ConvPlanView& plan = o.plan;
  const int64_t V = plan.header.block_rows, samples = grad.samples;
  const int64_t group_blocks = plan.header.rows_of_pattern / g.groups;
  const Tensor offsets = torch::stable::new_empty(grad.tensor, {plan.header.nnz}, ScalarType::Int);
  check(look_up(offset_table("conv2d_backward", tiling, down, across, group_blocks, V), plan.index,
                plan.header.nnz, offsets.mutable_data_ptr<int32_t>()),
        "conv2d_backward: expected a plan made by sparseprune::conv2d_plan, got one with other indices");
  if (d_value) std::fill_n(d_value, tile_groups * plan.header.nnz * V, Sum<Element>(0));
  const int64_t items = tiling.panels * g.groups * tiling.tiles();
  const int64_t threads = worthwhile_threads({plan.header.nnz, V, samples, grad.pixels()});
  const int64_t parts = (threads + tile_groups - 1) / tile_groups;
  const int32_t rows = int32_t(g.phases() * g.group_channels());
  torch::stable::parallel_for(0, tile_groups * parts, 1, [&](int64_t begin, int64_t end) {
    PackedTile<Element> packed{view_of<Element>(grad), samples, down, across, tiling};
    for (int64_t share = begin; share < end; ++share) {
      const int64_t tile_group = share / parts, part = share % parts;
      const ConvGradients<Element> gradients{g,
                                             down,
                                             across,
                                             tiling,
                                             plan,
                                             rows,
                                             offsets.const_data_ptr<int32_t>(),
                                             value,
                                             samples,
                                             input.height,
                                             input.width,
                                             x ? view_of<Element>(*x) : ImageView<const Element>{},
                                             d_x ? mutable_view_of<Element>(*d_x) : ImageView<Element>{},
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

// From g and x as the kernels want them; d_x as they write it. `input` is the size of x.
template <class Element>
Results gradients(const Operands& o, const Images& grad, const Images* x, ImageSize input, const Tensor* values) {
  const ConvGeometry& g = o.call.geometry;
  const PlanOrder order = o.order();
  const Tensor& like = grad.tensor;
  const int64_t samples = grad.samples;
  Results results;
  if (values)
    results.d_x = new_images(like, samples, g.in_channels, input.height, input.width, vectors_of_samples(samples));
  const Axis down = Axis::gradient(g, 0, input.height, grad.height),
             across = Axis::gradient(g, 1, input.width, grad.width);
  const Tiling tiling = tiling_of(down, across, o.plan.header.rows_of_pattern / g.groups * order.block_rows,
                                  samples, sizeof(Sum<Element>));
  const int64_t tile_groups = tiling.panels * g.groups * tiling.tiles() > 1 ? 2 : 1;
  const std::optional<Tensor> value =
      values ? std::optional(in_plan_order<Element>(*values, order)) : std::nullopt;
  const std::optional<Tensor> sums = x ? std::optional(new_sums<Element>(tile_groups, order, like)) : std::nullopt;
  Sum<Element>* d_value = sums ? mutable_data_of<Sum<Element>>(*sums) : nullptr;
  // Of an empty pattern, or no samples, nothing is added up.
  const bool nothing = samples == 0 || order.nnz == 0;
  if (results.d_x && (nothing || !g.reaches_all_phases())) torch::stable::zero_(results.d_x->tensor);
  if (sums && nothing) std::fill_n(d_value, sums->numel(), Sum<Element>(0));
  if (!nothing)
    run_gradients<Element>(o, grad, value ? data_of<Sum<Element>>(*value) : nullptr, x,
                           results.d_x ? &*results.d_x : nullptr, input, down, across, tiling, tile_groups,
                           d_value);
  if (sums) results.d_values = from_plan_order<Element>(*sums, tile_groups, order, like);
  return results;
}

// The gradients that are asked for: d_x where there are values, d_values where the call has x.
Results compute(const Operands& o, const Tensor* values) {
  const ConvCall& call = o.call;
  const auto run = [&](const Images& g, const std::optional<Images>& x, ImageSize input) {
    return dispatch(call.type,
                    [&](auto zero) { return gradients<decltype(zero)>(o, g, x ? &*x : nullptr, input, values); });
  };
  const Images g = for_kernels(*call.g);
  const std::optional<Images> x = call.x ? std::optional(for_kernels(*call.x)) : std::nullopt;
  if (call.geometry.pointwise()) {
    const bool by_samples = vectors_of_samples(call.samples);
    const std::optional<Images> row_of_g = as_one_row(g, by_samples),
                                row_of_x = x ? as_one_row(*x, by_samples) : std::nullopt;
    if (row_of_g && row_of_x.has_value() == x.has_value()) {
      Results results = run(*row_of_g, row_of_x, {1, row_of_g->width});
      if (results.d_x)
        results.d_x = from_one_row(*results.d_x, call.samples, call.in.height, call.in.width, by_samples);
      return results;
    }
  }
  return run(g, x, call.in);
}

// The plan of a pattern, by input channel.
ConvPlanView checked_plan(const Checks<OnCpu>& checks, const Tensor& crow, const Tensor& col, const Tensor& plan,
                          const ConvGeometry& g) {
  checks.is_indices("crow", crow);
  checks.is_indices("col", col);
  checks.is_indices("plan_t", plan);
  const char* op = checks.op;
  check(plan.dim() == 1 && plan.stride(0) == 1 && plan.numel() >= int64_t(sizeof(ConvPlanHeader) / 4) &&
            plan.const_data_ptr<int32_t>()[0] == ConvPlanHeader::expected_magic,
        op, ": expected a plan made by sparseprune::conv2d_plan, got another tensor; build it from crow and col");
  const ConvPlanHeader& h = *reinterpret_cast<const ConvPlanHeader*>(plan.const_data_ptr<int32_t>());
  check(h.geometry == g.as_numbers() && h.rows_of_pattern == crow.numel() - 1 && h.nnz == col.numel() &&
            plan.numel() == ConvPlanView::size(h, g),
        op, ": expected the plan of this pattern and geometry (", crow.numel() - 1, " rows of blocks, ",
        col.numel(), " nonzeros), got one of ", h.rows_of_pattern, " and ", h.nnz,
        " or of another geometry; build it again after changing either");
  check_plan(
      op, "conv2d_plan", crow, col, plan, [&] { return make_conv_plan(crow, col, g, h.block_rows); },
      [](const Tensor& t) { return t; });
  return ConvPlanView(plan.const_data_ptr<int32_t>(), g);
}

// Of g and x, or of g and the size of the input; values where the operator gets them.
Operands checked_operands(const char* op, const Tensor& g, const std::optional<Tensor>& x, ImageSize in,
                          const Tensor* values, const Tensor& crow, const Tensor& col, const Tensor& plan_t,
                          const std::vector<int64_t>& numbers) {
  const Checks<OnCpu> checks(op, "g", g);
  const ConvGeometry geometry = ConvGeometry::from(op, numbers);
  const ConvPlanView plan = checked_plan(checks, crow, col, plan_t, geometry);
  const int64_t block_rows = plan.header.block_rows;
  const ConvCall call = checked_gradients(checks, g, x, in, crow, col, geometry, block_rows);
  const int64_t given = values ? checks.block_rows_of(*values, col) : block_rows;
  check(given == block_rows, op, ": expected values.shape[1] == ", block_rows,
        " (rows of a block of the plan), got ", given);
  return {call, plan};
}

Tensor conv2d_t(const Tensor& g, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor& plan_t,
                std::vector<int64_t> geometry, std::vector<int64_t> input_size) {
  const Operands o = checked_operands("conv2d_t", g, std::nullopt, checked_input_size("conv2d_t", input_size),
                                      &values, crow, col, plan_t, geometry);
  return in_layout_by_kernels(*compute(o, &values).d_x, o.call.g->batch_inner).tensor;
}

Tensor conv2d_sddmm(const Tensor& g, const Tensor& x, const Tensor& crow, const Tensor& col, const Tensor& plan_t,
                    std::vector<int64_t> geometry, int64_t block_rows) {
  const Operands o = checked_operands("conv2d_sddmm", g, x, {}, nullptr, crow, col, plan_t, geometry);
  check(block_rows == o.call.block_rows, "conv2d_sddmm: expected block_rows == ", o.call.block_rows,
        " (the plan's), got ", block_rows);
  return *compute(o, nullptr).d_values;
}

std::tuple<Tensor, Tensor, Tensor> conv2d_backward(const Tensor& g, const Tensor& x, const Tensor& values,
                                                   const Tensor& crow, const Tensor& col, const Tensor& plan_t,
                                                   std::vector<int64_t> geometry, bool bias) {
  const Operands o = checked_operands("conv2d_backward", g, x, {}, &values, crow, col, plan_t, geometry);
  const Results results = compute(o, &values);
  const std::array<int64_t, 3> all_but_channels{0, 2, 3};
  return {in_layout_by_kernels(*results.d_x, o.call.x->batch_inner).tensor, *results.d_values,
          bias ? torch::stable::sum(g, all_but_channels) : torch::stable::new_empty(g, {0})};
}

}  // namespace
}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, m) {
  m.impl("conv2d_t", TORCH_BOX(&sparseprune::conv2d_t));
  m.impl("conv2d_sddmm", TORCH_BOX(&sparseprune::conv2d_sddmm));
  m.impl("conv2d_backward", TORCH_BOX(&sparseprune::conv2d_backward));
}
