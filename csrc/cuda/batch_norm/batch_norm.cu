// Operators batch_norm_act, batch_norm_act_eval and batch_norm_act_backward on a GPU.
#include <tuple>

#include "cuda/batch_norm/batch_norm.cuh"
#include "cuda/operands.h"

namespace sparseprune::cuda {
namespace {

// ---- checks ----

void check_channels(const char* op, const char* what, const std::optional<Tensor>& t, const Tensor& x) {
  if (!t) return;
  check_type(op, what, *t, t->scalar_type() == x.scalar_type() ? x.scalar_type() : ScalarType::Float, x);
  check_vector(op, what, *t, x.size(1), "channels");
}

void check_like(const char* op, const char* what, const std::optional<Tensor>& t, const Tensor& x) {
  if (!t) return;
  check_type(op, what, *t, x.scalar_type(), x);
  check(shape_of(*t) == shape_of(x), op, ": expected ", what, ".shape == ", shape_of(x), " (that of x), got ",
        shape_of(*t));
}

ScalarType check_input(const char* op, const Tensor& x) {
  const ScalarType type = check_floating(op, "x", x);
  check(x.dim() == 4, op, ": expected x.shape == [samples, channels, height, width], got ", x.dim(),
        " dimensions");
  return type;
}

// ---- what kernels see ----

Channels channels_of(const Tensor& x) {
  const int64_t n = x.size(0), c = x.size(1), pixels = x.size(2) * x.size(3);
  if (is_batch_inner_images(x)) return {int32_t(c), n * pixels, 1, n * pixels, 0};
  return {int32_t(c), pixels, n, pixels, c * pixels};
}

std::optional<Tensor> in_layout(const std::optional<Tensor>& t, bool batch_inner) {
  return t ? std::optional(images_in_layout(*t, batch_inner)) : std::nullopt;
}

Tensor images_like(const Tensor& x) {
  return new_images(x, x.size(0), x.size(1), x.size(2), x.size(3), is_batch_inner_images(x));
}

// A number for each channel, contiguous float32.
std::optional<Tensor> in_float(const std::optional<Tensor>& t) {
  return t ? std::optional(torch::stable::contiguous(torch::stable::to(*t, ScalarType::Float))) : std::nullopt;
}

Tensor new_channels(const Tensor& x) { return torch::stable::new_empty(x, {x.size(1)}, ScalarType::Float); }

// Statistics and parameters, which must outlive what is launched with them.
struct Parameters {
  std::optional<Tensor> mean, var, weight, bias;
  float eps;

  Parameters(const Tensor& mean, const Tensor& var, const std::optional<Tensor>& weight,
             const std::optional<Tensor>& bias, double eps)
      : mean(in_float(mean)),
        var(in_float(var)),
        weight(in_float(weight)),
        bias(in_float(bias)),
        eps(float(eps)) {}

  BatchNorm view() const {
    return {data_or_null<float>(mean), data_or_null<float>(var), data_or_null<float>(weight),
            data_or_null<float>(bias), eps};
  }
};

// ---- operators ----

// y where x already has the layout that y is to have first
Tensor normalized(const Tensor& x, const Parameters& parameters, const std::optional<Tensor>& residual, bool relu,
                  std::optional<bool> batch_inner, cudaStream_t stream) {
  const bool inner = is_batch_inner_images(x);
  const Tensor y = images_like(x);
  const std::optional<Tensor> added = in_layout(residual, inner);
  dispatch(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    batch_norm_normalize<T>(channels_of(x), data_of<T>(x), parameters.view(), data_or_null<T>(added), relu,
                            mutable_data_of<T>(y), stream);
  });
  return images_in_layout(y, batch_inner.value_or(inner));
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_act(const Tensor& input, const std::optional<Tensor>& weight,
                                                  const std::optional<Tensor>& bias,
                                                  const std::optional<Tensor>& residual, double eps, bool relu,
                                                  std::optional<bool> batch_inner) {
  const char* op = "batch_norm_act";
  const ScalarType type = check_input(op, input);
  check_channels(op, "weight", weight, input);
  check_channels(op, "bias", bias, input);
  check_like(op, "residual", residual, input);
  const OnDeviceOf device(op, input);
  const Tensor x = images_in_layout(input, is_batch_inner_images(input)), mean = new_channels(x),
               var = new_channels(x);
  const Channels channels = channels_of(x);
  const Tensor workspace = new_floats(x, batch_norm_workspace(channels));
  dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    batch_norm_statistics<T>(channels, data_of<T>(x), mutable_data_of<float>(workspace),
                             mutable_data_of<float>(mean), mutable_data_of<float>(var), device.stream);
  });
  const Tensor y = normalized(x, {mean, var, weight, bias, eps}, residual, relu, batch_inner, device.stream);
  device.check_launches();
  return {y, mean, var};
}

Tensor batch_norm_act_eval(const Tensor& input, const std::optional<Tensor>& weight,
                           const std::optional<Tensor>& bias, const Tensor& mean, const Tensor& var,
                           const std::optional<Tensor>& residual, double eps, bool relu,
                           std::optional<bool> batch_inner) {
  const char* op = "batch_norm_act_eval";
  check_input(op, input);
  check_channels(op, "weight", weight, input);
  check_channels(op, "bias", bias, input);
  check_channels(op, "mean", mean, input);
  check_channels(op, "var", var, input);
  check_like(op, "residual", residual, input);
  const OnDeviceOf device(op, input);
  const Tensor x = images_in_layout(input, is_batch_inner_images(input));
  const Tensor y = normalized(x, {mean, var, weight, bias, eps}, residual, relu, batch_inner, device.stream);
  device.check_launches();
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act_backward(const Tensor& grad, const Tensor& input,
                                                                   const std::optional<Tensor>& weight,
                                                                   const std::optional<Tensor>& bias,
                                                                   const Tensor& mean, const Tensor& var,
                                                                   const std::optional<Tensor>& output, double eps,
                                                                   bool relu, bool training, bool needs_residual) {
  const char* op = "batch_norm_act_backward";
  const ScalarType type = check_input(op, input);
  check_channels(op, "weight", weight, input);
  check_channels(op, "bias", bias, input);
  check_channels(op, "mean", mean, input);
  check_channels(op, "var", var, input);
  check_like(op, "g", grad, input);
  check_like(op, "y", output, input);
  const OnDeviceOf device(op, input);
  const bool inner = is_batch_inner_images(input);
  const Tensor x = images_in_layout(input, inner), g = images_in_layout(grad, inner), d_x = images_like(x),
               d_residual = needs_residual ? images_like(x) : torch::stable::new_empty(x, {0}),
               d_weight = new_channels(x), d_bias = new_channels(x);
  const std::optional<Tensor> y = relu ? in_layout(output, inner) : std::nullopt;
  const Parameters parameters(mean, var, weight, bias, eps);
  const Channels channels = channels_of(x);
  const Tensor workspace = new_floats(x, batch_norm_workspace(channels));
  dispatch(type, [&](auto zero) {
    using T = decltype(zero);
    batch_norm_gradients<T>(channels, data_of<T>(g), data_of<T>(x), parameters.view(), data_or_null<T>(y), relu,
                            training, mutable_data_of<float>(workspace), mutable_data_of<T>(d_x),
                            needs_residual ? mutable_data_of<T>(d_residual) : nullptr,
                            mutable_data_of<float>(d_weight), mutable_data_of<float>(d_bias), device.stream);
  });
  device.check_launches();
  return {d_x, d_residual, d_weight, d_bias};
}

}  // namespace
}  // namespace sparseprune::cuda

REGISTER_FOR_CUDA(m) {
  m.impl("batch_norm_act", TORCH_BOX(&sparseprune::cuda::batch_norm_act));
  m.impl("batch_norm_act_eval", TORCH_BOX(&sparseprune::cuda::batch_norm_act_eval));
  m.impl("batch_norm_act_backward", TORCH_BOX(&sparseprune::cuda::batch_norm_act_backward));
}
