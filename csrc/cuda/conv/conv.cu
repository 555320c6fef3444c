// Operators conv2d_plan, conv2d, conv2d_t, conv2d_sddmm and conv2d_backward on a GPU.
//
// Kernels read and write batch-inner images, [C, H, W, N] in memory; others are transposed first. A convolution of
// single pixels is a product of matrices over all pixels and samples, for which there are the kernels of linear
// layers.
#include <tuple>

#include "common/conv_plan.h"
#include "common/pattern.h"
#include "cuda/conv/conv.cuh"
#include "cuda/linear/products.h"
#include "cuda/plan.h"

namespace sparseprune::cuda {
namespace {

Tensor conv2d_plan(const Tensor& crow, const Tensor& col, std::vector<int64_t> geometry, int64_t block_rows) {
  const ConvGeometry g = ConvGeometry::from("conv2d_plan", geometry);
  check_device("conv2d_plan", "crow", crow, col);
  check_device("conv2d_plan", "col", col, crow);
  const Tensor starts = on_cpu(crow), made = make_conv_plan(starts, on_cpu(col), g, block_rows);
  const int64_t rows = crow.numel() - 1, rows_t = ConvPlanView::rows_of(g);
  const Tensor plan = torch::stable::new_empty(made, {ConvPlan::size(g, rows, col.numel())});
  int32_t* data = plan.mutable_data_ptr<int32_t>();
  const ConvPlanView view(made.const_data_ptr<int32_t>(), g);
  data = std::copy(view.start, view.source + view.header.nnz, data);
  fill_order(view.start, int32_t(rows_t), data);
  fill_order(starts.const_data_ptr<int32_t>(), int32_t(rows), data + rows_t);
  return on_device_of(crow, plan);
}

// A weight by its block rows and, for gradients, as its plan has it.
struct Weight {
  ConvGeometry geometry;
  int64_t block_rows;
  int32_t nnz;
  Tensor start, index;  // crow and col, contiguous
  ConvPlan plan;
  Rows by_rows;

  int64_t out_channels() const { return by_rows.count * block_rows; }
};

Weight checked_weight(const char* op, const Tensor& crow, const Tensor& col, const Tensor& plan_t,
                      const std::vector<int64_t>& geometry, int64_t block_rows, const Tensor& like) {
  const ConvGeometry g = ConvGeometry::from(op, geometry);
  check_block_rows(op, block_rows);
  check_type(op, "crow", crow, ScalarType::Int, like);
  check_type(op, "col", col, ScalarType::Int, like);
  check_type(op, "plan_t", plan_t, ScalarType::Int, like);
  const int64_t rows = crow.numel() - 1, nnz = col.numel();
  check(crow.dim() == 1 && col.dim() == 1 && rows >= 0 && rows % g.groups == 0 && plan_t.is_contiguous() &&
            plan_t.numel() == ConvPlan::size(g, rows, nnz),
        op, ": expected a plan made by sparseprune::conv2d_plan on a GPU, of this pattern (", rows,
        " rows of blocks, ", nnz, " nonzeros) and geometry, got one of ", plan_t.numel(),
        " numbers; build it again after changing or moving the pattern");
  const Tensor start = torch::stable::contiguous(crow), index = torch::stable::contiguous(col);
  const ConvPlan plan(data_of<int32_t>(plan_t), g, int32_t(nnz));
  return {g,
          block_rows,
          int32_t(nnz),
          start,
          index,
          plan,
          {data_of<int32_t>(start), data_of<int32_t>(index), plan.order_of_rows, int32_t(rows)}};
}

int64_t block_rows_of(const char* op, const Tensor& values, const Tensor& col) {
  check(values.dim() == 2 && values.size(0) == col.numel(), op, ": expected values.shape == [", col.numel(),
        " (nonzero blocks of the pattern), rows of a block], got ", shape_of(values));
  return values.size(1);
}

struct Size {
  int64_t height, width;
};

ConvShape shape_of_call(const Weight& w, Size in, Size out, int64_t samples) {
  const ConvGeometry& g = w.geometry;
  for (const int64_t size : {in.height, in.width, out.height, out.width, samples})
    check(size <= INT32_MAX, "convolution: expected sizes of less than 2^31, got ", size);
  return {{int32_t(in.height), int32_t(in.width)},
          {int32_t(out.height), int32_t(out.width)},
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
          int32_t(w.by_rows.count / g.groups),
          int32_t(samples)};
}

bool is_product(const ConvGeometry& g) { return g.pointwise() && g.groups == 1; }

// Images as kernels want them, [C, H, W, N] in memory, with that shape.
Tensor batch_inner(const Tensor& x) { return samples_last(images_in_layout(x, true)); }
Tensor new_batch_inner(const Tensor& like, int64_t channels, Size size, int64_t samples) {
  return torch::stable::new_empty(like, {channels, size.height, size.width, samples});
}
// Back to (N, C, H, W).
Tensor finished(const Tensor& y, bool inner) { return images_in_layout(samples_first(y), inner); }

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
  const char* op = "conv2d";
  const ScalarType type = check_floating(op, "x", x);
  check_type(op, "values", values, type, x);
  const Weight w = checked_weight(op, crow, col, plan_t, geometry, block_rows_of(op, values, col), x);
  const ConvGeometry& g = w.geometry;
  check_images(op, "x", x, g.in_channels, "in_channels");
  if (bias) {
    check_type(op, "bias", *bias, type, x);
    check_vector(op, "bias", *bias, w.out_channels(), "out_channels");
  }
  const Size in{x.size(2), x.size(3)}, out{g.output_size(op, 0, in.height), g.output_size(op, 1, in.width)};
  const OnDeviceOf device(op, x);
  const Tensor input = batch_inner(x), value = torch::stable::contiguous(values),
               y = new_batch_inner(x, w.out_channels(), out, x.size(0));
  const std::optional<Tensor> b = bias ? std::optional(torch::stable::contiguous(*bias)) : std::nullopt;
  const ConvShape of = shape_of_call(w, in, out, x.size(0));
  if (is_product(g))
    multiply(w.by_rows, value, input, of.pixels_in() * of.samples, b, false, y, device.stream);
  else
    run(x, of, w.block_rows, [&](auto zero, auto v, Tap* taps) {
      using T = decltype(zero);
      launch_conv<T, v.value>(w.by_rows, data_of<T>(value), of, data_of<T>(input), data_or_null<T>(b), taps,
                              mutable_data_of<T>(y), device.stream);
    });
  device.check_launches();
  return finished(y, inner.value_or(is_batch_inner_images(x)));
}

// ---- gradients ----

// g [K, HO, WO, N], the result [C, H, W, N]
Tensor input_gradient(const Weight& w, const ConvShape& of, const Tensor& g, const Tensor& values,
                      cudaStream_t stream) {
  const Tensor value = torch::stable::contiguous(values),
               d_x = new_batch_inner(g, w.geometry.in_channels, {of.in.height, of.in.width}, of.samples);
  if (is_product(w.geometry))
    multiply_transposed(w.plan.rows, w.plan.source, value, g, of.pixels_in() * of.samples, d_x, stream);
  else
    run(g, of, w.block_rows, [&](auto zero, auto v, Tap* taps) {
      using T = decltype(zero);
      launch_conv_t<T, v.value>(w.plan.rows, w.plan.source, data_of<T>(value), of, data_of<T>(g), taps,
                                mutable_data_of<T>(d_x), stream);
    });
  return d_x;
}

// g [K, HO, WO, N], x [C, H, W, N]
Tensor weight_gradient(const Weight& w, const ConvShape& of, const Tensor& g, const Tensor& x,
                       cudaStream_t stream) {
  const Tensor d_values = torch::stable::new_empty(g, {int64_t(w.nnz), w.block_rows});
  if (is_product(w.geometry)) {
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

// The sizes of a call, from its output's gradient and its input's size.
ConvShape checked_gradient(const char* op, const Tensor& g, const Weight& w, Size in) {
  check_images(op, "g", g, w.out_channels(), "out_channels");
  const Size out{w.geometry.output_size(op, 0, in.height), w.geometry.output_size(op, 1, in.width)};
  check(g.size(2) == out.height && g.size(3) == out.width, op, ": expected g of height and width ", out.height,
        " x ", out.width, " (the output's), got ", g.size(2), " x ", g.size(3));
  return shape_of_call(w, in, out, g.size(0));
}

void check_input(const char* op, const Tensor& x, const Tensor& g, const Weight& w) {
  check_type(op, "x", x, g.scalar_type(), g);
  check_images(op, "x", x, w.geometry.in_channels, "in_channels");
  check(g.dim() == 4 && g.size(0) == x.size(0), op, ": expected x and g of as many samples, got ", shape_of(x),
        " and ", shape_of(g));
}

Tensor conv2d_t(const Tensor& g, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor& plan_t,
                std::vector<int64_t> geometry, std::vector<int64_t> input_size) {
  const char* op = "conv2d_t";
  check(input_size.size() == 2, op, ": expected input_size to be [height, width], got ", input_size.size(),
        " numbers");
  check_type(op, "values", values, check_floating(op, "g", g), g);
  const Weight w = checked_weight(op, crow, col, plan_t, geometry, block_rows_of(op, values, col), g);
  const ConvShape of = checked_gradient(op, g, w, {input_size[0], input_size[1]});
  const OnDeviceOf device(op, g);
  const Tensor d_x = input_gradient(w, of, batch_inner(g), values, device.stream);
  device.check_launches();
  return finished(d_x, is_batch_inner_images(g));
}

Tensor conv2d_sddmm(const Tensor& g, const Tensor& x, const Tensor& crow, const Tensor& col, const Tensor& plan_t,
                    std::vector<int64_t> geometry, int64_t block_rows) {
  const char* op = "conv2d_sddmm";
  check_floating(op, "g", g);
  const Weight w = checked_weight(op, crow, col, plan_t, geometry, block_rows, g);
  check_input(op, x, g, w);
  const ConvShape of = checked_gradient(op, g, w, {x.size(2), x.size(3)});
  const OnDeviceOf device(op, g);
  const Tensor d_values = weight_gradient(w, of, batch_inner(g), batch_inner(x), device.stream);
  device.check_launches();
  return d_values;
}

std::tuple<Tensor, Tensor, Tensor> conv2d_backward(const Tensor& g, const Tensor& x, const Tensor& values,
                                                   const Tensor& crow, const Tensor& col, const Tensor& plan_t,
                                                   std::vector<int64_t> geometry) {
  const char* op = "conv2d_backward";
  check_type(op, "values", values, check_floating(op, "g", g), g);
  const Weight w = checked_weight(op, crow, col, plan_t, geometry, block_rows_of(op, values, col), g);
  check_input(op, x, g, w);
  const ConvShape of = checked_gradient(op, g, w, {x.size(2), x.size(3)});
  const OnDeviceOf device(op, g);
  const Tensor grad = batch_inner(g), d_x = input_gradient(w, of, grad, values, device.stream),
               d_values = weight_gradient(w, of, grad, batch_inner(x), device.stream),
               d_bias = bias_gradient(grad, device.stream);
  device.check_launches();
  return {finished(d_x, is_batch_inner_images(x)), d_values, d_bias};
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
