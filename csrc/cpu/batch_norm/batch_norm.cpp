// Operators batch_norm_act, batch_norm_act_eval and batch_norm_act_backward.
//
// A channel of batch-inner images is one run of numbers that fits the L2 cache: every pass after the first reads
// it from there. Channels are divided among threads, and the sums of a channel are always added up in the same
// order, so that results have the same bits at any number of threads.
#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "common/batch_norm_call.h"
#include "cpu/images.h"
#include "cpu/threads.h"

namespace sparseprune {
namespace {

// Where a channel's numbers are: `pieces` runs of `piece` numbers.
struct Channels {
  int64_t channels, channel_stride, pieces, piece, piece_stride;

  static Channels of(const Images& x) {
    const int64_t n = x.samples, c = x.channels, pixels = x.pixels();
    if (x.batch_inner) return {c, n * pixels, 1, n * pixels, 0};
    return {c, pixels, n, pixels, c * pixels};
  }
  int64_t numbers() const { return pieces * piece; }

  // run(offset, count) for blocks of a channel's numbers
  template <class Run>
  void for_blocks(int64_t channel, Run run) const {
    for (int64_t p = 0; p < pieces && piece > 0; ++p) {
      const int64_t start = channel * channel_stride + p * piece_stride;
      for (int64_t k = 0; k < piece; k += norm_block)
        run(start + k, int(std::min<int64_t>(norm_block, piece - k)));
    }
  }

  // run(channel) on all threads
  template <class Run>
  void for_all(Run run) const {
    const int64_t grain = channels * numbers() < serial_work ? channels : 1;
    torch::stable::parallel_for(0, channels, grain, [&](int64_t begin, int64_t end) {
      for (int64_t channel = begin; channel < end; ++channel) run(channel);
    });
  }
};

// A number for each channel, in the sums' dtype.
template <class Element>
std::vector<Sum<Element>> numbers_of(const std::optional<Tensor>& t, int64_t channels, double otherwise) {
  std::vector<Sum<Element>> numbers(static_cast<size_t>(channels), static_cast<Sum<Element>>(otherwise));
  for (int64_t c = 0; t && c < channels; ++c)
    numbers[size_t(c)] = t->scalar_type() == ScalarType::BFloat16
                             ? Sum<Element>(widened(data_of<BFloat16>(*t)[c * t->stride(0)]))
                             : Sum<Element>(data_of<Sum<Element>>(*t)[c * t->stride(0)]);
  return numbers;
}

// t, of the same shape, laid out as the images are.
std::optional<Tensor> in_layout_of(const Images& images, const std::optional<Tensor>& t) {
  return t ? std::optional(in_layout_by_kernels(Images(*t), images.batch_inner).tensor) : std::nullopt;
}

template <class Element>
const Element* data_or_null(const std::optional<Tensor>& t) {
  return t ? data_of<Element>(*t) : nullptr;
}

Tensor new_statistics(const Images& x) {
  return torch::stable::new_empty(x.tensor, {x.channels}, type_of_statistics(x.tensor.scalar_type()));
}

// The forward and the backward pass use these same numbers, to the last bit.
template <class Element>
class Normalizations {
 public:
  Normalizations(const std::optional<Tensor>& weight, const std::optional<Tensor>& bias, int64_t channels,
                 double eps)
      : weight_(numbers_of<Element>(weight, channels, 1)),
        bias_(numbers_of<Element>(bias, channels, 0)),
        eps_(eps) {}

  double rstd(Sum<Element> var) const { return 1 / std::sqrt(double(var) + eps_); }
  Normalization<Sum<Element>> of(int64_t channel, Sum<Element> mean, Sum<Element> var) const {
    return {mean, Sum<Element>(double(weight_[size_t(channel)]) * rstd(var)), bias_[size_t(channel)]};
  }

 private:
  std::vector<Sum<Element>> weight_, bias_;
  double eps_;
};

// Mean and variance of a channel: those of blocks, combined (Chan, Golub, LeVeque, 1983).
template <class Element>
void statistics(const Element* x, const Channels& at, int64_t channel, Sum<Element>& mean, Sum<Element>& var) {
  double count = 0, average = 0, squares = 0;
  at.for_blocks(channel, [&](int64_t offset, int n) {
    Sum<Element> block_sum, block_squares;
    kernels<Element>().moments(x + offset, n, &block_sum, &block_squares);
    const double away = double(block_sum) / n - average, total = count + n;
    average += away * n / total;
    squares += double(block_squares) + away * away * count * n / total;
    count = total;
  });
  mean = Sum<Element>(average);
  var = Sum<Element>(squares / count);
}

template <class Element>
void normalize(const Element* x, const Element* residual, const Channels& at, int64_t channel,
               Normalization<Sum<Element>> of, bool relu, Element* y) {
  at.for_blocks(channel, [&](int64_t offset, int n) {
    kernels<Element>().normalize(x + offset, residual ? residual + offset : nullptr, n, of, relu, y + offset);
  });
}

std::tuple<Tensor, Tensor, Tensor> batch_norm_act(const Tensor& input, const std::optional<Tensor>& weight,
                                                  const std::optional<Tensor>& bias,
                                                  const std::optional<Tensor>& residual, double eps, bool relu,
                                                  std::optional<bool> batch_inner) {
  const Checks<OnCpu> checks("batch_norm_act", "x", input);
  const Images images =
      checked_batch_norm(checks, input, {{"weight", weight}, {"bias", bias}}, {{"residual", residual}});
  const Images x = in_layout_by_kernels(images, images.batch_inner), y = new_images_like(x);
  const std::optional<Tensor> added = in_layout_of(images, residual);
  const Channels at = Channels::of(x);
  const Tensor mean = new_statistics(x), var = new_statistics(x);
  dispatch(checks.type, [&](auto zero) {
    using Element = decltype(zero);
    const Element *from = data_of<Element>(x.tensor), *other = data_or_null<Element>(added);
    Element* to = mutable_data_of<Element>(y.tensor);
    Sum<Element>*means = mutable_data_of<Sum<Element>>(mean), *vars = mutable_data_of<Sum<Element>>(var);
    const Normalizations<Element> normalizations(weight, bias, at.channels, eps);
    at.for_all([&](int64_t c) {
      statistics(from, at, c, means[c], vars[c]);
      normalize(from, other, at, c, normalizations.of(c, means[c], vars[c]), relu, to);
    });
  });
  return {in_layout_by_kernels(y, batch_inner.value_or(images.batch_inner)).tensor, mean, var};
}

Tensor batch_norm_act_eval(const Tensor& input, const std::optional<Tensor>& weight,
                           const std::optional<Tensor>& bias, const Tensor& mean, const Tensor& var,
                           const std::optional<Tensor>& residual, double eps, bool relu,
                           std::optional<bool> batch_inner) {
  const Checks<OnCpu> checks("batch_norm_act_eval", "x", input);
  const Images images = checked_batch_norm(
      checks, input, {{"weight", weight}, {"bias", bias}, {"mean", mean}, {"var", var}}, {{"residual", residual}});
  const Images x = in_layout_by_kernels(images, images.batch_inner), y = new_images_like(x);
  const std::optional<Tensor> added = in_layout_of(images, residual);
  const Channels at = Channels::of(x);
  dispatch(checks.type, [&](auto zero) {
    using Element = decltype(zero);
    const Element *from = data_of<Element>(x.tensor), *other = data_or_null<Element>(added);
    Element* to = mutable_data_of<Element>(y.tensor);
    const std::vector<Sum<Element>> means = numbers_of<Element>(mean, at.channels, 0),
                                    vars = numbers_of<Element>(var, at.channels, 1);
    const Normalizations<Element> normalizations(weight, bias, at.channels, eps);
    at.for_all([&](int64_t c) {
      normalize(from, other, at, c, normalizations.of(c, means[size_t(c)], vars[size_t(c)]), relu, to);
    });
  });
  return in_layout_by_kernels(y, batch_inner.value_or(images.batch_inner)).tensor;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act_backward(const Tensor& grad, const Tensor& input,
                                                                   const std::optional<Tensor>& weight,
                                                                   const std::optional<Tensor>& bias,
                                                                   const Tensor& mean, const Tensor& var,
                                                                   const std::optional<Tensor>& output, double eps,
                                                                   bool relu, bool training, bool needs_residual) {
  const Checks<OnCpu> checks("batch_norm_act_backward", "x", input);
  const Images images =
      checked_batch_norm(checks, input, {{"weight", weight}, {"bias", bias}, {"mean", mean}, {"var", var}},
                         {{"g", grad}, {"y", output}});
  const Images x = in_layout_by_kernels(images, images.batch_inner),
               g = in_layout_by_kernels(Images(grad), images.batch_inner), d_x = new_images_like(x);
  const Tensor d_residual = needs_residual ? new_images_like(x).tensor : torch::stable::new_empty(x.tensor, {0});
  const std::optional<Tensor> y = relu ? in_layout_of(images, output) : std::nullopt;
  const Channels at = Channels::of(x);
  const Tensor d_weight = new_statistics(x), d_bias = new_statistics(x);
  dispatch(checks.type, [&](auto zero) {
    using Element = decltype(zero);
    using Scalar = Sum<Element>;
    const Element *from = data_of<Element>(x.tensor), *gradient = data_of<Element>(g.tensor),
                  *outputs = data_or_null<Element>(y);
    Element *to = mutable_data_of<Element>(d_x.tensor),
            *to_residual = needs_residual ? mutable_data_of<Element>(d_residual) : nullptr;
    Scalar *to_weight = mutable_data_of<Scalar>(d_weight), *to_bias = mutable_data_of<Scalar>(d_bias);
    const std::vector<Scalar> means = numbers_of<Element>(mean, at.channels, 0),
                              vars = numbers_of<Element>(var, at.channels, 1);
    const Normalizations<Element> normalizations(weight, bias, at.channels, eps);
    at.for_all([&](int64_t c) {
      const Normalization<Scalar> of = normalizations.of(c, means[size_t(c)], vars[size_t(c)]);
      const auto gated = [&](int64_t offset) {
        return GatedGradient<Element>{gradient + offset, from + offset, outputs ? outputs + offset : nullptr,
                                      relu && !outputs, of};
      };
      double of_g = 0, of_product = 0;
      at.for_blocks(c, [&](int64_t offset, int n) {
        Scalar sums[2];
        kernels<Element>().norm_gradient_sums(gated(offset), n, to_residual ? to_residual + offset : nullptr,
                                              sums);
        of_g += double(sums[0]);
        of_product += double(sums[1]);
      });
      const double rstd = normalizations.rstd(vars[size_t(c)]), scale = double(of.scale);
      const double share = training ? -scale / double(at.numbers()) : 0;
      const NormGradient<Scalar> coefficients{of.scale, Scalar(share * of_product * rstd * rstd),
                                              Scalar(share * of_g)};
      at.for_blocks(c, [&](int64_t offset, int n) {
        const GatedGradient<Element> again =
            to_residual ? GatedGradient<Element>{to_residual + offset, from + offset, nullptr, false, of}
                        : gated(offset);
        kernels<Element>().norm_gradient(again, n, coefficients, to + offset);
      });
      to_weight[c] = Scalar(of_product * rstd);
      to_bias[c] = Scalar(of_g);
    });
  });
  return {d_x.tensor, d_residual, d_weight, d_bias};
}

}  // namespace
}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, m) {
  m.impl("batch_norm_act", TORCH_BOX(&sparseprune::batch_norm_act));
  m.impl("batch_norm_act_eval", TORCH_BOX(&sparseprune::batch_norm_act_eval));
  m.impl("batch_norm_act_backward", TORCH_BOX(&sparseprune::batch_norm_act_backward));
}
