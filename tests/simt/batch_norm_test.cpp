// The kernels of batch normalisation on the CPU (simt.h) against double precision, over awkward shapes.
#include "cuda/batch_norm/batch_norm.cuh"

#include "checking.h"

namespace sparseprune::cuda {
namespace {

struct Images {
  int samples, channels, height, width;
  bool batch_inner;

  int64_t size() const { return int64_t(samples) * channels * height * width; }
  Channels layout() const {
    const int64_t pixels = int64_t(height) * width;
    if (batch_inner) return {channels, samples * pixels, 1, samples * pixels, 0};
    return {channels, pixels, samples, pixels, channels * pixels};
  }
};

// Each operand is there, or each behaviour asked for, in one half of the cases.
struct Options {
  bool weight, bias, residual, relu, output, training, d_residual, unaligned;

  explicit Options(int bits)
      : weight(bits & 1),
        bias(bits & 2),
        residual(bits & 4),
        relu(bits & 8),
        output(bits & 16 || (residual && relu)),
        training(bits & 32),
        d_residual(bits & 64),
        unaligned(bits & 128) {}
};

template <class T>
double number(T value) {
  return double(float(value));
}

template <class T>
bool same_bits(const T* a, const T* b, int64_t n) {
  return memcmp(static_cast<const void*>(a), static_cast<const void*>(b), size_t(n) * sizeof(T)) == 0;
}

// Roundings of a formula on single numbers, and of merging the moments of parts, at most.
constexpr double pointwise = 8, merging = 64;

template <class T>
void statistics(const Channels& at, const T* x, const float* mean, const float* var) {
  for (int32_t c = 0; c < at.channels; ++c) {
    const auto count = double(at.numbers());
    double sum = 0, size = 0, squares = 0;
    for (int64_t k = 0; k < at.numbers(); ++k) {
      sum += number(x[at.at(c, uint32_t(k))]);
      size += std::abs(number(x[at.at(c, uint32_t(k))]));
    }
    for (int64_t k = 0; k < at.numbers(); ++k)
      squares += std::pow(number(x[at.at(c, uint32_t(k))]) - sum / count, 2);
    const double error = gamma(count + 1) * size / count;
    expect_close<float>(mean[c], sum / count, error, c);
    const double expected = squares / count;
    // Squares are not negative, so their sum has a relative error; a mean that is off by `error` adds its square.
    expect_close<float>(var[c], expected, gamma(count + merging) * expected + error * error, c);
  }
}

template <class T>
void batch_norm(const char* type, const Images& images, int bits, bool special) {
  const Options with(bits);
  char text[200];
  snprintf(text, sizeof text, "%s [%d, %d, %d, %d]%s, options %d%s", type, images.samples, images.channels,
           images.height, images.width, images.batch_inner ? " batch-inner" : "", bits,
           special ? ", with inf and nan" : "");
  current = text;
  const Channels at = images.layout();
  const int64_t n = images.size(), skipped = with.unaligned;
  const auto xs = Buffer<T>::random(n + skipped), gs = Buffer<T>::random(n + skipped),
             residuals = Buffer<T>::random(with.residual ? n + skipped : 0);
  const auto weight = Buffer<float>::random(at.channels), bias = Buffer<float>::random(at.channels);
  T *const x = xs.data() + skipped, *const g = gs.data() + skipped,
           *const residual = with.residual ? residuals.data() + skipped : nullptr;
  if (special && n > 1) {
    x[n / 2] = T(std::numeric_limits<float>::infinity());
    x[n - 1] = T(std::numeric_limits<float>::quiet_NaN());
    g[n / 3] = T(std::numeric_limits<float>::quiet_NaN());
  }

  const Buffer<float> workspace(batch_norm_workspace(at)), mean(at.channels), var(at.channels);
  batch_norm_statistics<T>(at, x, workspace.data(), mean.data(), var.data(), nullptr);
  statistics(at, x, mean.data(), var.data());
  if (!with.training)
    for (int32_t c = 0; c < at.channels; ++c) mean[c] = float(uniform()), var[c] = float(1.1 + uniform());

  const BatchNorm norm{mean.data(), var.data(), with.weight ? weight.data() : nullptr,
                       with.bias ? bias.data() : nullptr, 1e-5f};
  const Buffer<T> ys(n + skipped);
  T* const y = ys.data() + skipped;
  batch_norm_normalize<T>(at, x, norm, residual, with.relu, y, nullptr);

  const Buffer<T> d_x(n), d_residual(with.d_residual ? n : 0);
  const Buffer<float> d_weight(at.channels), d_bias(at.channels);
  batch_norm_gradients<T>(at, g, x, norm, with.output ? y : nullptr, with.relu, with.training, workspace.data(),
                          d_x.data(), with.d_residual ? d_residual.data() : nullptr, d_weight.data(),
                          d_bias.data(), nullptr);

  for (int32_t c = 0; c < at.channels; ++c) {
    const double rstd = 1 / std::sqrt(double(var[c]) + double(1e-5f)), average = mean[c],
                 scale = with.weight ? rstd * weight[c] : rstd, shift = with.bias ? bias[c] : 0;
    const auto gated = [&](int64_t i) { return with.relu && number(y[i]) <= 0 ? 0 : number(g[i]); };
    double of_g = 0, of_product = 0, size_of_g = 0, size_of_product = 0;
    for (int64_t k = 0; k < at.numbers(); ++k) {
      const int64_t i = at.at(c, uint32_t(k));
      const double away = number(x[i]) - average, added = residual ? number(residual[i]) : 0;
      double expected = away * scale + shift + added;
      if (with.relu && expected < 0) expected = 0;
      const double size = std::abs(away * scale) + std::abs(shift) + std::abs(added);
      expect_close<T>(number(y[i]), expected, gamma(pointwise) * size, i);
      of_g += gated(i);
      size_of_g += std::abs(gated(i));
      of_product += gated(i) * away;
      size_of_product += std::abs(gated(i) * away);
    }
    const auto count = double(at.numbers());
    expect_close<float>(d_bias[c], of_g, gamma(count) * size_of_g, c);
    expect_close<float>(d_weight[c], of_product * rstd, gamma(count + pointwise) * size_of_product * rstd, c);
    for (int64_t k = 0; k < at.numbers(); ++k) {
      const int64_t i = at.at(c, uint32_t(k));
      const double away = number(x[i]) - average;
      double expected = gated(i), size = std::abs(expected);
      if (with.training) {
        expected -= of_g / count + away * rstd * rstd * of_product / count;
        size += (size_of_g + std::abs(away) * rstd * rstd * size_of_product) / count;
      }
      expect_close<T>(number(d_x[i]), expected * scale, gamma(count + 2 * pointwise) * size * std::abs(scale), i);
      if (with.d_residual) expect_same(number(d_residual[i]), gated(i), i);
    }
  }
}

// What may not differ in a single bit: the same call again, with its blocks in another order, and gates of the
// output given or computed again.
template <class T>
void same_every_time(const char* type, const Images& images) {
  current = std::string(type) + ": the same bits every time";
  const Channels at = images.layout();
  const int64_t n = images.size();
  const auto x = Buffer<T>::random(n), g = Buffer<T>::random(n);
  // Outputs near 0: what decides is their rounding.
  for (int64_t i = 0; i < n; ++i) x[i] = T(float(number(x[i]) * (i % 2 ? 1 : 1e-7)));
  const Buffer<float> weight(at.channels), mean(2 * at.channels), var(2 * at.channels);
  for (int32_t c = 0; c < at.channels; ++c) weight[c] = c % 2 ? -1e-3f : 1;
  const Buffer<float> workspace(batch_norm_workspace(at)), d_weight(2 * at.channels), d_bias(2 * at.channels);
  const Buffer<T> y(2 * n), d_x(2 * n), d_residual(n);
  for (int turn = 0; turn < 2; ++turn) {
    const int64_t first = turn * at.channels;
    batch_norm_statistics<T>(at, x.data(), workspace.data(), mean.data() + first, var.data() + first, nullptr);
    for (int32_t c = 0; c < at.channels && c < 2; ++c) mean[first + c] = 0;
    const BatchNorm norm{mean.data() + first, var.data() + first, weight.data(), nullptr, 1e-5f};
    T* const of_turn = y.data() + turn * n;
    batch_norm_normalize<T>(at, x.data(), norm, nullptr, true, of_turn, nullptr);
    batch_norm_gradients<T>(at, g.data(), x.data(), norm, turn ? of_turn : nullptr, true, true, workspace.data(),
                            d_x.data() + turn * n, turn ? d_residual.data() : nullptr, d_weight.data() + first,
                            d_bias.data() + first, nullptr);
  }
  if (!same_bits(mean.data(), mean.data() + at.channels, at.channels)) fail("mean");
  if (!same_bits(var.data(), var.data() + at.channels, at.channels)) fail("var");
  if (!same_bits(y.data(), y.data() + n, n)) fail("y");
  if (!same_bits(d_x.data(), d_x.data() + n, n)) fail("d_x");
  if (!same_bits(d_weight.data(), d_weight.data() + at.channels, at.channels)) fail("d_weight");
  if (!same_bits(d_bias.data(), d_bias.data() + at.channels, at.channels)) fail("d_bias");
  checks += 6;
}

// A mean that is large beside the standard deviation.
template <class T>
void large_mean(const char* type, const Images& images, double around, double deviation) {
  current = std::string(type) + ", mean " + std::to_string(around);
  const Channels at = images.layout();
  const auto x = Buffer<T>::random(images.size());
  for (int64_t i = 0; i < x.size(); ++i)
    x[i] = T(float(around + deviation * std::sqrt(3.0) * number(x[i]) + 0.1 * deviation * double(i) / x.size()));
  const Buffer<float> workspace(batch_norm_workspace(at)), mean(at.channels), var(at.channels);
  batch_norm_statistics<T>(at, x.data(), workspace.data(), mean.data(), var.data(), nullptr);
  statistics(at, x.data(), mean.data(), var.data());
}

void empty() {
  current = "empty";
  const Buffer<float> none(0), mean(3), var(3), d_weight(3), d_bias(3);
  for (const Images& images : {Images{0, 3, 5, 7, false}, Images{0, 3, 5, 7, true}, Images{4, 0, 5, 7, true}}) {
    const Channels at = images.layout();
    const BatchNorm norm{mean.data(), var.data(), nullptr, nullptr, 1e-5f};
    if (batch_norm_workspace(at) != 0) fail("workspace");
    batch_norm_statistics<float>(at, none.data(), none.data(), mean.data(), var.data(), nullptr);
    for (int32_t c = 0; c < at.channels; ++c) {
      expect_same(mean[c], std::nan(""), c);
      expect_same(var[c], std::nan(""), c);
      mean[c] = var[c] = 1;
    }
    batch_norm_normalize<float>(at, none.data(), norm, nullptr, true, none.data(), nullptr);
    batch_norm_gradients<float>(at, none.data(), none.data(), norm, none.data(), true, true, none.data(),
                                none.data(), none.data(), d_weight.data(), d_bias.data(), nullptr);
    for (int32_t c = 0; c < at.channels; ++c) {
      expect_same(d_weight[c], 0, c);
      expect_same(d_bias[c], 0, c);
    }
  }
}

void too_large() {
  current = "too large";
  const Channels at{1, 0, 1 << 16, 1 << 15, 1 << 15};
  try {
    batch_norm_statistics<float>(at, nullptr, nullptr, nullptr, nullptr, nullptr);
  } catch (const std::invalid_argument&) {
    ++checks;
    return;
  }
  fail("a channel of 2^31 numbers was not refused");
}

template <class T>
void shapes(const char* type) {
  int turn = 0;
  const auto check = [&](int samples, int channels, int height, int width, bool special = false) {
    for (const bool batch_inner : {false, true}) {
      batch_norm<T>(type, {samples, channels, height, width, batch_inner}, turn * 37 % 256, special);
      ++turn;
    }
  };
  if (brief) {
    check(17, 1, 3, 5);
    check(5, 2, 8, 8);
    return;
  }
  for (const int channels : {1, 3, 5})
    for (const int samples : {1, 2, 3, 16, 17}) {
      if (channels == 5 && samples < 16) continue;
      check(samples, channels, 1, 1);
      check(samples, channels, 3, 5);
      check(samples, channels, 8, 8);
    }
  for (const int samples : {2, 5}) check(samples, 3, 3, 5, true), check(samples, 3, 8, 8, true);
  for (int i = 0; i < 2; ++i) check(131, 2, 8, 8), check(551, 1, 3, 5);  // two parts and a bit
  check(2 * norm_part / 64, 1, 8, 8);                                    // whole parts only
  check(2 * norm_part + 1, 2, 1, 1);
  for (const bool batch_inner : {false, true}) {
    same_every_time<T>(type, {131, 3, 8, 8, batch_inner});
    large_mean<T>(type, {131, 2, 8, 8, batch_inner}, 1000, 0.1);
    large_mean<T>(type, {17, 2, 3, 5, batch_inner}, -300, 0.1);
  }
}

void run() {
  empty();
  too_large();
  shapes<float>("float32");
  if (brief) return;
  shapes<Half>("float16");
  shapes<BFloat16>("bfloat16");
}

}  // namespace
}  // namespace sparseprune::cuda

int main(int argc, char** argv) { return sparseprune::cuda::main_of_test(argc, argv, sparseprune::cuda::run); }
