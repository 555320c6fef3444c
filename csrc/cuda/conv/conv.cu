// Operators conv2d_plan, conv2d, conv2d_t, conv2d_sddmm and conv2d_backward on a GPU.
//
// Kernels read and write batch-inner images, [C, H, W, N] in memory; others are transposed first. A convolution of
// single pixels is a product of matrices over all pixels and samples, for which there are the kernels of linear
// layers.
#include <tuple>

#include "common/conv_call.h"
#include "common/conv_plan.h"
#include "common/known_plans.h"
#include "cuda/conv/conv.cuh"
#include "cuda/conv/plan.h"
#include "cuda/linear/products.h"
#include "cuda/plans.h"
#include "cuda/stream.h"

namespace sparseprune::cuda {
namespace {

// The plan of a pattern on the CPU, in the CPU's memory.
Tensor plan_on_cpu(const Tensor& starts, const Tensor& columns, const ConvGeometry& g, int64_t block_rows) {
  const Tensor made = make_conv_plan(starts, columns, g, block_rows);
  const int64_t rows = starts.numel() - 1, rows_t = ConvPlanView::rows_of(g);
  const Tensor plan = torch::stable::new_empty(made, {ConvPlan::size(g, rows, columns.numel())});
  int32_t* data = plan.mutable_data_ptr<int32_t>();
  const ConvPlanView view(made.const_data_ptr<int32_t>(), g);
  data = std::copy(view.start, view.source + view.header.nnz, data);
  fill_order(view.start, int32_t(rows_t), data);
  fill_order(starts.const_data_ptr<int32_t>(), int32_t(rows), data + rows_t);
  return plan;
}

Tensor conv2d_plan(const Tensor& crow, const Tensor& col, std::vector<int64_t> geometry, int64_t block_rows) {
  const ConvGeometry g = ConvGeometry::from("conv2d_plan", geometry);
  Here::check_device("conv2d_plan", "crow", crow, col);
  Here::check_device("conv2d_plan", "col", col, crow);
  return on_device_of(crow, plan_on_cpu(on_cpu(crow), on_cpu(col), g, block_rows));
}

// A weight by its block rows and, for gradients, as its plan has it.
struct Weight {
  int64_t block_rows, nnz;
  Tensor start, index;  // crow and col, contiguous
  ConvPlan plan;
  Rows by_rows;
};

Weight checked_weight(const Checks<Here>& checks, const ConvCall& call, const Tensor& crow, const Tensor& col,
                      const Tensor& plan_t) {
  const ConvGeometry& g = call.geometry;
  checks.is_indices("plan_t", plan_t);
  check(plan_t.is_contiguous() && plan_t.numel() == ConvPlan::size(g, call.rows, call.nnz), checks.op,
        ": expected a plan made by sparseprune::conv2d_plan on a GPU, of this pattern (", call.rows,
        " rows of blocks, ", call.nnz, " nonzeros) and geometry, got one of ", plan_t.numel(),
        " numbers; build it again after changing or moving the pattern");
  check_plan(
      checks.op, "conv2d_plan", crow, col, plan_t,
      [&] { return plan_on_cpu(on_cpu(crow), on_cpu(col), g, call.block_rows); }, on_cpu);
  const Tensor start = torch::stable::contiguous(crow), index = torch::stable::contiguous(col);
  const ConvPlan plan(data_of<int32_t>(plan_t), g, int32_t(call.nnz));
  return {call.block_rows,
          call.nnz,
          start,
          index,
          plan,
          {data_of<int32_t>(start), data_of<int32_t>(index), plan.order_of_rows, int32_t(call.rows)}};
}

ConvShape shape_of_call(const ConvCall& call) {
  const ConvGeometry& g = call.geometry;
  for (const int64_t size : {call.in.height, call.in.width, call.out.height, call.out.width, call.samples})
    check(size <= INT32_MAX, "convolution: expected sizes of less than 2^31, got ", size);
  return {{int32_t(call.in.height), int32_t(call.in.width)},
          {int32_t(call.out.height), int32_t(call.out.width)},
          int32_t(g.kernel[0]),
          int32_t(g.kernel[1]),
          int32_t(g.stride[0]),
          int32_t(g.stride[1]),
          int32_t(g.pad[0]),
          int32_t(g.pad[2]),
          int32_t(g.dilation[0]),
          int32_t(g.dilation[1]),
          int32_t(g.groups),
          int32_t(g.group_channels()),
          int32_t(call.rows / g.groups),
          int32_t(call.samples),
          int32_t(g.phases(0)),
          int32_t(g.phases(1))};
}

bool is_product(const ConvGeometry& g) { return g.pointwise() && g.groups == 1; }

// Images as kernels want them, [C, H, W, N] in memory, with that shape.
Tensor batch_inner(const Images& x) { return samples_last(in_layout(x, true).tensor); }
Tensor new_batch_inner(const Tensor& like, int64_t channels, ImageSize size, int64_t samples) {
  return torch::stable::new_empty(like, {channels, size.height, size.width, samples});
}
// Back to (N, C, H, W).
Tensor finished(const Tensor& y, bool inner) { return in_layout(Images(samples_first(y)), inner).tensor; }

// Calls launch(a number of the tensors' type, V as a constant, room for taps).
template <class Launch>
void run(const Tensor& like, const ConvShape& of, int64_t block_rows, Launch launch) {
  const int64_t count = std::max(conv_taps(of, false), conv_taps(of, true));
  const Tensor taps = torch::stable::new_empty(like, {(count + 1) * int64_t(sizeof(Tap))}, ScalarType::Byte);
  dispatch(like.scalar_type(), [&](auto zero) {
    for_block_rows(block_rows, [&](auto v) { launch(zero, v, mutable_data_of<Tap>(taps)); });
  });
}

Tensor conv2d(const Tensor& x, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor& plan_t,
              std::vector<int64_t> geometry, const std::optional<Tensor>& bias, std::optional<bool> inner) {
  const Checks<Here> checks("conv2d", "x", x);
  const ConvCall call = checked_convolution(checks, x, values, crow, col, geometry, bias);
  const Weight w = checked_weight(checks, call, crow, col, plan_t);
  const ConvShape of = shape_of_call(call);

  const OnDeviceOf device("conv2d", x);
  const Tensor input = batch_inner(*call.x), value = torch::stable::contiguous(values),
               y = new_batch_inner(x, call.out_channels(), call.out, call.samples);
  const std::optional<Tensor> b = bias ? std::optional(torch::stable::contiguous(*bias)) : std::nullopt;
  if (is_product(call.geometry))
    multiply(w.by_rows, value, input, of.pixels_in() * of.samples, b, false, y, device.stream);
  else
    run(x, of, w.block_rows, [&](auto zero, auto v, Tap* taps) {
      using T = decltype(zero);
      launch_conv<T, v.value>(w.by_rows, data_of<T>(value), of, data_of<T>(input), data_or_null<T>(b), taps,
                              mutable_data_of<T>(y), device.stream);
    });
  device.check_launches();
  return finished(y, inner.value_or(call.x->batch_inner));
}

// ---- gradients ----

// What all gradients need.
struct Operands {
  ConvCall call;
  Weight weight;
  ConvShape of;
};

// Of g and x, or of g and the size of the input.
Operands checked_operands(const Checks<Here>& checks, const Tensor& g, const std::optional<Tensor>& x,
                          ImageSize in, const Tensor& crow, const Tensor& col, const Tensor& plan_t,
                          const std::vector<int64_t>& geometry, int64_t block_rows) {
  const ConvGeometry numbers = ConvGeometry::from(checks.op, geometry);
  check_block_rows(checks.op, block_rows);
  const ConvCall call = checked_gradients(checks, g, x, in, crow, col, numbers, block_rows);
  return {call, checked_weight(checks, call, crow, col, plan_t), shape_of_call(call)};
}

// g [K, HO, WO, N], the result [C, H, W, N]
Tensor input_gradient(const Operands& o, const Tensor& g, const Tensor& values, cudaStream_t stream) {
  const ConvShape& of = o.of;
  const Rows& rows = o.weight.plan.rows;
  const int32_t* source = o.weight.plan.source;
  const Tensor value = torch::stable::contiguous(values);
  Tensor d_x = new_batch_inner(g, o.call.geometry.in_channels, o.call.in, of.samples);
  if (!o.call.geometry.reaches_all_phases()) torch::stable::zero_(d_x);
  if (is_product(o.call.geometry))
    multiply_transposed(rows, source, value, g, of.pixels_in() * of.samples, d_x, stream);
  else
    run(g, of, o.weight.block_rows, [&](auto zero, auto v, Tap* taps) {
      using T = decltype(zero);
      launch_conv_t<T, v.value>(rows, source, data_of<T>(value), of, data_of<T>(g), taps, mutable_data_of<T>(d_x),
                                stream);
    });
  return d_x;
}

// g [K, HO, WO, N], x [C, H, W, N]
Tensor weight_gradient(const Operands& o, const Tensor& g, const Tensor& x, cudaStream_t stream) {
  const ConvShape& of = o.of;
  const Weight& w = o.weight;
  const Tensor d_values = torch::stable::new_empty(g, {w.nnz, w.block_rows});
  if (is_product(o.call.geometry)) {
    multiply_sampled(w.by_rows, g, x, of.pixels_in() * of.samples, d_values, stream);
  } else {
    const Parts parts = parts_of_conv(of, w.by_rows.count);
    const Tensor workspace = new_floats(g, parts.count * d_values.numel());
    run(g, of, w.block_rows, [&](auto zero, auto v, Tap* taps) {
      using T = decltype(zero);
      launch_conv_sddmm<T, v.value>(w.by_rows, w.nnz, of, data_of<T>(g), data_of<T>(x), taps, parts,
                                    mutable_data_of<float>(workspace), mutable_data_of<T>(d_values), stream);
    });
  }
  return d_values;
}

Tensor bias_gradient(const Tensor& g, cudaStream_t stream) {
  const Tensor d_bias = torch::stable::new_empty(g, {g.size(0)});
  sum_rows(g, std::nullopt, g.size(1) * g.size(2) * g.size(3), std::nullopt, d_bias, stream);
  return d_bias;
}

Tensor conv2d_t(const Tensor& g, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor& plan_t,
                std::vector<int64_t> geometry, std::vector<int64_t> input_size) {
  const Checks<Here> checks("conv2d_t", "g", g);
  const Operands o = checked_operands(checks, g, std::nullopt, checked_input_size("conv2d_t", input_size), crow,
                                      col, plan_t, geometry, checks.block_rows_of(values, col));
  const OnDeviceOf device("conv2d_t", g);
  const Tensor d_x = input_gradient(o, batch_inner(*o.call.g), values, device.stream);
  device.check_launches();
  return finished(d_x, o.call.g->batch_inner);
}

Tensor conv2d_sddmm(const Tensor& g, const Tensor& x, const Tensor& crow, const Tensor& col, const Tensor& plan_t,
                    std::vector<int64_t> geometry, int64_t block_rows) {
  const Checks<Here> checks("conv2d_sddmm", "g", g);
  const Operands o = checked_operands(checks, g, x, {}, crow, col, plan_t, geometry, block_rows);
  const OnDeviceOf device("conv2d_sddmm", g);
  const Tensor d_values = weight_gradient(o, batch_inner(*o.call.g), batch_inner(*o.call.x), device.stream);
  device.check_launches();
  return d_values;
}

std::tuple<Tensor, Tensor, Tensor> conv2d_backward(const Tensor& g, const Tensor& x, const Tensor& values,
                                                   const Tensor& crow, const Tensor& col, const Tensor& plan_t,
                                                   std::vector<int64_t> geometry, bool bias) {
  const Checks<Here> checks("conv2d_backward", "g", g);
  const Operands o =
      checked_operands(checks, g, x, {}, crow, col, plan_t, geometry, checks.block_rows_of(values, col));
  const OnDeviceOf device("conv2d_backward", g);
  const Tensor grad = batch_inner(*o.call.g), d_x = input_gradient(o, grad, values, device.stream),
               d_values = weight_gradient(o, grad, batch_inner(*o.call.x), device.stream),
               d_bias = bias ? bias_gradient(grad, device.stream) : torch::stable::new_empty(g, {0});
  device.check_launches();
  return {finished(d_x, o.call.x->batch_inner), d_values, d_bias};
}

}  // namespace
}  // namespace sparseprune::cuda

REGISTER_FOR_CUDA(m) {
  m.impl("conv2d_plan", TORCH_BOX(&sparseprune::cuda::conv2d_plan));
  m.impl("conv2d", TORCH_BOX(&sparseprune::cuda::conv2d));
  m.impl("conv2d_t", TORCH_BOX(&sparseprune::cuda::conv2d_t));
  m.impl("conv2d_sddmm", TORCH_BOX(&sparseprune::cuda::conv2d_sddmm));
  m.impl("conv2d_backward", TORCH_BOX(&sparseprune::cuda::conv2d_backward));
}
