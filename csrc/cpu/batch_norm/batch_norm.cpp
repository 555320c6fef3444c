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

#include "cpu/conv/operands.h"

namespace sparseprune {
namespace {

// Where a channel's numbers are: `pieces` runs of `piece` numbers.
struct Channels {
  int64_t channels, channel_stride, pieces, piece, piece_stride;

  static Channels of(const Tensor& x) {
    const int64_t n = x.size(0), c = x.size(1), pixels = x.size(2) * x.size(3);
    if (is_batch_inner_images(x)) return {c, n * pixels, 1, n * pixels, 0};
    return {c, pixels, n, pixels, c * pixels};
  }
  int64_t numbers() const { return pieces * piece; }

  // run(offset, count) for blocks of a channel's numbers
  template <class Run>
  void for_blocks(int64_t channel, Run run) const {
    for (int64_t p = 0; p < pieces; ++p) {
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

ScalarType sums_of(ScalarType type) { return type == ScalarType::Double ? type : ScalarType::Float; }

void check_channels(const char* op, const char* what, const std::optional<Tensor>& t, const Tensor& x) {
  if (!t) return;
  const ScalarType type = x.scalar_type();
  check_type(op, what, *t, t->scalar_type() == type ? type : sums_of(type));
  check_vector(op, what, *t, x.size(1), "channels");
}

ScalarType check_input(const char* op, const Tensor& x) {
  const ScalarType type = check_floating(op, "x", x);
  check_type(op, "x", x, type);
  check(x.dim() == 4, op, ": expected x.shape == [samples, channels, height, width], got ", x.dim(),
        " dimensions");
  return type;
}

void check_like(const char* op, const char* what, const std::optional<Tensor>& t, const Tensor& x) {
  if (!t) return;
  check_type(op, what, *t, x.scalar_type());
  check(shape_of(*t) == shape_of(x), op, ": expected ", what, ".shape == ", shape_of(x), " (that of x), got ",
        shape_of(*t));
}

std::optional<Tensor> in_layout(const std::optional<Tensor>& t, bool batch_inner) {
  return t ? std::optional(sparseprune::in_layout(*t, batch_inner)) : std::nullopt;
}

template <class Element>
const Element* data_or_null(const std::optional<Tensor>& t) {
  return t ? data_of<Element>(*t) : nullptr;
}

Tensor images_like(const Tensor& x) {
  return new_images(x, x.size(0), x.size(1), x.size(2), x.size(3), is_batch_inner_images(x));
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
  const ScalarType type = check_input("batch_norm_act", input);
  check_channels("batch_norm_act", "weight", weight, input);
  check_channels("batch_norm_act", "bias", bias, input);
  check_like("batch_norm_act", "residual", residual, input);
  const bool inner = is_batch_inner_images(input);
  const Tensor x = sparseprune::in_layout(input, inner), y = images_like(x);
  const std::optional<Tensor> added = in_layout(residual, inner);
  const Channels at = Channels::of(x);
  const Tensor mean = torch::stable::new_empty(x, {at.channels}, sums_of(type)),
               var = torch::stable::new_empty(x, {at.channels}, sums_of(type));
  dispatch(type, [&](auto zero) {
    using Element = decltype(zero);
    const Element *from = data_of<Element>(x), *other = data_or_null<Element>(added);
    Element* to = mutable_data_of<Element>(y);
    Sum<Element>*means = mutable_data_of<Sum<Element>>(mean), *vars = mutable_data_of<Sum<Element>>(var);
    const Normalizations<Element> normalizations(weight, bias, at.channels, eps);
    at.for_all([&](int64_t c) {
      statistics(from, at, c, means[c], vars[c]);
      normalize(from, other, at, c, normalizations.of(c, means[c], vars[c]), relu, to);
    });
  });
  return {sparseprune::in_layout(y, batch_inner.value_or(inner)), mean, var};
}

Tensor batch_norm_act_eval(const Tensor& input, const std::optional<Tensor>& weight,
                           const std::optional<Tensor>& bias, const Tensor& mean, const Tensor& var,
                           const std::optional<Tensor>& residual, double eps, bool relu,
                           std::optional<bool> batch_inner) {
  const ScalarType type = check_input("batch_norm_act_eval", input);
  check_channels("batch_norm_act_eval", "weight", weight, input);
  check_channels("batch_norm_act_eval", "bias", bias, input);
  check_channels("batch_norm_act_eval", "mean", mean, input);
  check_channels("batch_norm_act_eval", "var", var, input);
  check_like("batch_norm_act_eval", "residual", residual, input);
  const bool inner = is_batch_inner_images(input);
  const Tensor x = sparseprune::in_layout(input, inner), y = images_like(x);
  const std::optional<Tensor> added = in_layout(residual, inner);
  const Channels at = Channels::of(x);
  dispatch(type, [&](auto zero) {
    using Element = decltype(zero);
    const Element *from = data_of<Element>(x), *other = data_or_null<Element>(added);
    Element* to = mutable_data_of<Element>(y);
    const std::vector<Sum<Element>> means = numbers_of<Element>(mean, at.channels, 0),
                                    vars = numbers_of<Element>(var, at.channels, 1);
    const Normalizations<Element> normalizations(weight, bias, at.channels, eps);
    at.for_all([&](int64_t c) {
      normalize(from, other, at, c, normalizations.of(c, means[size_t(c)], vars[size_t(c)]), relu, to);
    });
  });
  return sparseprune::in_layout(y, batch_inner.value_or(inner));
}

std::tuple<Tensor, Tensor, Tensor, Tensor> batch_norm_act_backward(const Tensor& grad, const Tensor& input,
                                                                   const std::optional<Tensor>& weight,
                                                                   const std::optional<Tensor>& bias,
                                                                   const Tensor& mean, const Tensor& var,
                                                                   const std::optional<Tensor>& output, double eps,
                                                                   bool relu, bool training, bool needs_residual) {
  const ScalarType type = check_input("batch_norm_act_backward", input);
  check_channels("batch_norm_act_backward", "weight", weight, input);
  check_channels("batch_norm_act_backward", "bias", bias, input);
  check_channels("batch_norm_act_backward", "mean", mean, input);
  check_channels("batch_norm_act_backward", "var", var, input);
  check_like("batch_norm_act_backward", "g", grad, input);
  check_like("batch_norm_act_backward", "y", output, input);
  const bool inner = is_batch_inner_images(input);
  const Tensor x = sparseprune::in_layout(input, inner), g = sparseprune::in_layout(grad, inner),
               d_x = images_like(x),
               d_residual = needs_residual ? images_like(x) : torch::stable::new_empty(x, {0});
  const std::optional<Tensor> y = relu ? in_layout(output, inner) : std::nullopt;
  const Channels at = Channels::of(x);
  const Tensor d_weight = torch::stable::new_empty(x, {at.channels}, sums_of(type)),
               d_bias = torch::stable::new_empty(x, {at.channels}, sums_of(type));
  dispatch(type, [&](auto zero) {
    using Element = decltype(zero);
    using Scalar = Sum<Element>;
    const Element *from = data_of<Element>(x), *gradient = data_of<Element>(g),
                  *outputs = data_or_null<Element>(y);
    Element *to = mutable_data_of<Element>(d_x),
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
  return {d_x, d_residual, d_weight, d_bias};
}

}  // namespace
}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, m) {
  m.impl("batch_norm_act", TORCH_BOX(&sparseprune::batch_norm_act));
  m.impl("batch_norm_act_eval", TORCH_BOX(&sparseprune::batch_norm_act_eval));
  m.impl("batch_norm_act_backward", TORCH_BOX(&sparseprune::batch_norm_act_backward));
}
