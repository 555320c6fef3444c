// The kernels of batch normalisation, over counts that leave every remainder of a vector and of four.
#pragma once
#include <limits>

#include "problems.h"

namespace sparseprune {

template <class Element>
class BatchNormTests {
 public:
  BatchNormTests(const std::string& isa, const KernelsOf<Element>& kernels) : isa_(isa), kernels_(kernels) {}

  void run() const {
    std::vector<int> counts{norm_block - 1, norm_block};
    for (int n = 1; n < 140; ++n) counts.push_back(n);
    for (int n : counts) {
      moments(n);
      for (bool relu : {false, true})
        for (bool residual : {false, true}) normalize(n, relu, residual);
      for (int gate = 0; gate < 3; ++gate)
        for (bool kept : {false, true}) gradients(n, gate, kept);
    }
  }

 private:
  using Scalar = Sum<Element>;
  static constexpr Normalization<Scalar> of{2, -3, 1};

  void begin_case(const char* kernel, int n, int a, int b) const {
    describe("%s %s %s: n %d, %d, %d", isa_.c_str(), name_of<Element>(), kernel, n, a, b);
    ++cases;
  }

  static void fill(const Buffer<Element>& buffer) {
    for (int64_t k = 0; k < buffer.size(); ++k) buffer[k] = element<Element>(small_integer());
  }
  static double at(const Buffer<Element>& buffer, int64_t k) { return double(widened(buffer[k])); }
  static double normalized(double x) { return (x - of.mean) * of.scale + of.bias; }
  static void compare(const char* what, int64_t k, double expected, double actual) {
    if (!same(expected, actual)) fail(what, 0, k, expected, actual);
  }

  void moments(int n) const {
    begin_case("moments", n, 0, 0);
    const Buffer<Element> x("x", n);
    fill(x);
    Scalar sum, squares;
    kernels_.moments(x.data(), n, &sum, &squares);
    double exact_sum = 0, exact_squares = 0;
    for (int k = 0; k < n; ++k) exact_sum += at(x, k);
    for (int k = 0; k < n; ++k) exact_squares += std::pow(at(x, k) - exact_sum / n, 2);
    compare("sum", 0, exact_sum, double(sum));
    // The mean is no integer: it is off by its rounding, which adds its square n times. Squares are not negative,
    // so n + 4 roundings one after the other bound the relative error of their sum.
    const double u = double(std::numeric_limits<Scalar>::epsilon()) / 2, roundings = (n + 4) * u,
                 off = u * std::fabs(exact_sum / n), most = exact_squares + n * off * off;
    if (std::fabs(double(squares) - exact_squares) > roundings / (1 - roundings) * most + n * off * off)
      fail("squares", 0, 0, exact_squares, double(squares));
  }

  void normalize(int n, bool relu, bool with_residual) const {
    begin_case("normalize", n, relu, with_residual);
    const Buffer<Element> x("x", n), residual("residual", with_residual ? n : 0), y("y", n);
    fill(x);
    fill(residual);
    x[n / 2] = element<Element>(NAN);
    kernels_.normalize(x.data(), with_residual ? residual.data() : nullptr, n, of, relu, y.data());
    for (int k = 0; k < n; ++k) {
      const double number = normalized(at(x, k)) + (with_residual ? at(residual, k) : 0);
      compare("y", k, nearest(relu && number < 0 ? 0 : number, Element{}), at(y, k));
    }
  }

  void gradients(int n, int gate, bool kept) const {
    begin_case("gradients", n, gate, kept);
    const Buffer<Element> g("g", n), x("x", n), y("y", gate == 1 ? n : 0), to("to", kept ? n : 0), d_x("d_x", n);
    for (const Buffer<Element>* buffer : {&g, &x, &y}) fill(*buffer);
    const GatedGradient<Element> gated{g.data(), x.data(), gate == 1 ? y.data() : nullptr, gate == 2, of};
    const NormGradient<Scalar> coefficients{3, -2, 5};
    Scalar sums[2] = {};
    kernels_.norm_gradient_sums(gated, n, kept ? to.data() : nullptr, sums);
    kernels_.norm_gradient(gated, n, coefficients, d_x.data());
    double of_g = 0, of_product = 0;
    for (int k = 0; k < n; ++k) {
      const bool zero = gate == 1 ? at(y, k) <= 0 : gate == 2 && normalized(at(x, k)) <= 0;
      const double number = zero ? 0 : at(g, k), centered = at(x, k) - of.mean;
      of_g += number;
      of_product += number * centered;
      if (kept) compare("to", k, number, at(to, k));
      compare("d_x", k, nearest(3 * number - 2 * centered + 5, Element{}), at(d_x, k));
    }
    compare("sum of g", 0, of_g, double(sums[0]));
    compare("sum of products", 0, of_product, double(sums[1]));
  }

  std::string isa_;
  const KernelsOf<Element>& kernels_;
};

}  // namespace sparseprune
