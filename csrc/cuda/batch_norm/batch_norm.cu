// Operators batch_norm_act, batch_norm_act_eval and batch_norm_act_backward on a GPU.
#include <tuple>

#include "common/batch_norm_call.h"
#include "cuda/batch_norm/batch_norm.cuh"
#include "cuda/stream.h"
#include "cuda/tensors.h"

namespace sparseprune::cuda {
namespace {

Channels channels_of(const Images& x) {
  const int64_t n = x.samples, c = x.channels, pixels = x.pixels();
  if (x.batch_inner) return {int32_t(c), n * pixels, 1, n * pixels, 0};
  return {int32_t(c), pixels, n, pixels, c * pixels};
}

// t, of the same shape, laid out as the images are.
std::optional<Tensor> in_layout_of(const Images& images, const std::optional<Tensor>& t) {
  return t ? std::optional(in_layout(Images(*t), images.batch_inner).tensor) : std::nullopt;
}

// A number for each channel, contiguous float32.
std::optional<Tensor> in_float(const std::optional<Tensor>& t) {
  return t ? std::optional(torch::stable::contiguous(torch::stable::to(*t, ScalarType::Float))) : std::nullopt;
}

Tensor new_channels(const Images& x) {
  return torch::stable::new_empty(x.tensor, {x.channels}, ScalarType::Float);
}

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

// y, laid out as x is.
Images normalized(const Images& x, const Parameters& parameters, const std::optional<Tensor>& residual, bool relu,
                  cudaStream_t stream) {
  const Images y = new_images_like(x);
  dispatch(x.tensor.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    batch_norm_normalize<T>(channels_of(x), data_of<T>(x.tensor), parameters.view(), data_or_null<T>(residual),
                            relu, mutable_data_of<T>(y.tensor), stream);
  });
  return y;
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_act(const Tensor& input, const std::optional<Tensor>& weight,
                                                  const std::optional<Tensor>& bias,
                                                  const std::optional<Tensor>& residual, double eps, bool relu,
                                                  std::optional<bool> batch_inner) {
  const Checks<Here> checks("batch_norm_act", "x", input);
  const Images images =
      checked_batch_norm(checks, input, {{"weight", weight}, {"bias", bias}}, {{"residual", residual}});
  const OnDeviceOf device("batch_norm_act", input);
  const Images x = in_layout(images, images.batch_inner);
  const Tensor mean = new_channels(x), var = new_channels(x);
  const Channels channels = channels_of(x);
  const Tensor workspace = new_floats(input, batch_norm_workspace(channels));
  dispatch(checks.type, [&](auto zero) {
    using T = decltype(zero);
    batch_norm_statistics<T>(channels, data_of<T>(x.tensor), mutable_data_of<float>(workspace),
                             mutable_data_of<float>(mean), mutable_data_of<float>(var), device.stream);
  });
  const Images y =
      normalized(x, {mean, var, weight, bias, eps}, in_layout_of(images, residual), relu, device.stream);
  const Tensor result = in_layout(y, batch_inner.value_or(images.batch_inner)).tensor;
  device.check_launches();
  return {result, mean, var};
}

Tensor batch_norm_act_eval(const Tensor& input, const std::optional<Tensor>& weight,
                           const std::optional<Tensor>& bias, const Tensor& mean, const Tensor& var,
                           const std::optional<Tensor>& residual, double eps, bool relu,
                           std::optional<bool> batch_inner) {
  const Checks<Here> checks("batch_norm_act_eval", "x", input);
  const Images images = checked_batch_norm(
      checks, input, {{"weight", weight}, {"bias", bias}, {"mean", mean}, {"var", var}}, {{"residual", residual}});
  const OnDeviceOf device("batch_norm_act_eval", input);
  const Images x = in_layout(images, images.batch_inner);
  const Images y =
      normalized(x, {mean, var, weight, bias, eps}, in_layout_of(images, residual), relu, device.stream);
  const Tensor result = in_layout(y, batch_inner.value_or(images.batch_inner)).tensor;
  device.check_launches();
  return result;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act_backward(const Tensor& grad, const Tensor& input,
                                                                   const std::optional<Tensor>& weight,
                                                                   const std::optional<Tensor>& bias,
                                                                   const Tensor& mean, const Tensor& var,
                                                                   const std::optional<Tensor>& output, double eps,
                                                                   bool relu, bool training, bool needs_residual) {
  const Checks<Here> checks("batch_norm_act_backward", "x", input);
  const Images images =
      checked_batch_norm(checks, input, {{"weight", weight}, {"bias", bias}, {"mean", mean}, {"var", var}},
                         {{"g", grad}, {"y", output}});
  const OnDeviceOf device("batch_norm_act_backward", input);
  const Images x = in_layout(images, images.batch_inner), g = in_layout(Images(grad), images.batch_inner),
               d_x = new_images_like(x);
  const Tensor d_residual = needs_residual ? new_images_like(x).tensor : torch::stable::new_empty(input, {0}),
               d_weight = new_channels(x), d_bias = new_channels(x);
  const std::optional<Tensor> y = relu ? in_layout_of(images, output) : std::nullopt;
  const Parameters parameters(mean, var, weight, bias, eps);
  const Channels channels = channels_of(x);
  const Tensor workspace = new_floats(input, batch_norm_workspace(channels));
  dispatch(checks.type, [&](auto zero) {
    using T = decltype(zero);
    batch_norm_gradients<T>(channels, data_of<T>(g.tensor), data_of<T>(x.tensor), parameters.view(),
                            data_or_null<T>(y), relu, training, mutable_data_of<float>(workspace),
                            mutable_data_of<T>(d_x.tensor),
                            needs_residual ? mutable_data_of<T>(d_residual) : nullptr,
                            mutable_data_of<float>(d_weight), mutable_data_of<float>(d_bias), device.stream);
  });
  device.check_launches();
  return {d_x.tensor, d_residual, d_weight, d_bias};
}

}  // namespace
}  // namespace sparseprune::cuda

REGISTER_FOR_CUDA(m) {
  m.impl("batch_norm_act", TORCH_BOX(&sparseprune::cuda::batch_norm_act));
  m.impl("batch_norm_act_eval", TORCH_BOX(&sparseprune::cuda::batch_norm_act_eval));
  m.impl("batch_norm_act_backward", TORCH_BOX(&sparseprune::cuda::batch_norm_act_backward));
}
