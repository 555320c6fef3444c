// The arithmetic of a convolution's positions, one axis (height or width) at a time.
//
// Forward, output position o reads input position o * stride + k * dilation - pad for each position k of the
// kernel. Both it and its gradient are computed without strides between what is read:
//  - the input of a strided convolution is split into its phases, positions equal modulo the stride: for one k,
//  all
//    outputs read consecutive positions of one phase;
//  - the gradient of input position q * stride + phase is a sum over those k that reach this phase at all, of
//    output gradients at consecutive positions, one for each q.
#pragma once
#include <algorithm>
#include <array>
#include <cstdint>
#include <numeric>
#include <vector>

#include "common/checks.h"
#include "common/sizes.h"

namespace sparseprune {

struct ImageSize {
  int64_t height, width;
};

// Order of the operators' argument `geometry`.
struct ConvGeometry {
  int64_t in_channels, kernel[2], stride[2], pad[4], dilation[2], groups;  // pad: top, bottom, left, right

  static constexpr size_t numbers = 12;

  static ConvGeometry from(const char* op, const std::vector<int64_t>& g) {
    check(g.size() == numbers, op,
          ": expected geometry to hold 12 numbers (in_channels, kernel height and width, ",
          "stride, stride, padding top, bottom, left, right, dilation, dilation, groups), got ", g.size());
    constexpr const char* names[] = {"in_channels", "kernel_size", "kernel_size", "stride",
                                     "stride",      "padding",     "padding",     "padding",
                                     "padding",     "dilation",    "dilation",    "groups"};
    constexpr int64_t least[] = {0, 1, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1};
    for (size_t i = 0; i < numbers; ++i)
      check(least[i] <= g[i] && g[i] <= INT32_MAX, op, ": expected ", names[i], " of at least ", least[i],
            " and below 2^31, got ", g[i]);
    const ConvGeometry result{g[0], {g[1], g[2]}, {g[3], g[4]}, {g[5], g[6], g[7], g[8]}, {g[9], g[10]}, g[11]};
    check(result.in_channels % result.groups == 0, op, ": expected in_channels divisible by groups, got ", g[0],
          " and ", g[11]);
    for (int axis = 0; axis < 2; ++axis)
      check(result.reach(axis) <= INT32_MAX, op, ": expected a kernel that reaches less than 2^31 pixels, ",
            "dilation x (kernel_size - 1) + 1, got ", result.dilation[axis], " x (", result.kernel[axis],
            " - 1) + 1");
    check(product({result.group_channels(), result.kernel[0], result.kernel[1]}) <= INT32_MAX, op,
          ": expected fewer than 2^31 weights of an output channel, in_channels / groups x kernel_size, got ",
          g[0], " / ", g[11], " x ", g[1], " x ", g[2]);
    return result;
  }

  std::array<int32_t, numbers> as_numbers() const {
    std::array<int64_t, numbers> wide{in_channels, kernel[0], kernel[1], stride[0],   stride[1],   pad[0],
                                      pad[1],      pad[2],    pad[3],    dilation[0], dilation[1], groups};
    std::array<int32_t, numbers> result;
    std::copy(wide.begin(), wide.end(), result.begin());
    return result;
  }

  // 1x1: every pixel on its own
  bool pointwise() const {
    return taps() == 1 && stride[0] == 1 && stride[1] == 1 && pad[0] == 0 && pad[1] == 0 && pad[2] == 0 &&
           pad[3] == 0;
  }
  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t group_channels() const { return in_channels / groups; }
  int64_t cols() const { return group_channels() * taps(); }  // of the weight as a matrix

  // Phases of the input that the kernel reaches along an axis: no more than it has positions, however large the
  // stride is. Positions of the kernel stride / gcd(stride, dilation) apart reach the same one, nearer ones do
  // not. So phase number i is the one that position i of the kernel reaches, and position k reaches number
  // k % phases.
  int64_t phases(int axis) const {
    return std::min(kernel[axis], stride[axis] / std::gcd(stride[axis], dilation[axis]));
  }
  int64_t phases() const { return phases(0) * phases(1); }
  bool reaches_all_phases() const { return phases(0) == stride[0] && phases(1) == stride[1]; }
  int64_t phase_number_of_tap(int64_t tap) const {
    return tap / kernel[1] % phases(0) * phases(1) + tap % kernel[1] % phases(1);
  }
  // Where in the input phase number i begins.
  int64_t start_of_phase(int axis, int64_t i) const {
    const int64_t s = stride[axis];
    return ((i * dilation[axis] - pad[2 * axis]) % s + s) % s;
  }

  int64_t reach(int axis) const { return dilation[axis] * (kernel[axis] - 1) + 1; }

  int64_t output_size(const char* op, int axis, int64_t input) const {
    const char* name = axis == 0 ? "height" : "width";
    check(0 <= input && input <= INT32_MAX, op, ": expected an input of at least 0 and below 2^31 in ", name,
          ", got ", input);
    const int64_t padded = input + pad[2 * axis] + pad[2 * axis + 1];
    check(padded <= INT32_MAX, op, ": expected a padded input below 2^31 in ", name, ", got ", input,
          " with padding of ", pad[2 * axis], " and ", pad[2 * axis + 1]);
    check(padded >= reach(axis), op, ": expected a padded input of at least ", reach(axis),
          " (the kernel's reach) in ", name, ", got ", padded);
    return (padded - reach(axis)) / stride[axis] + 1;
  }

  ImageSize output_size(const char* op, ImageSize in) const {
    return {output_size(op, 0, in.height), output_size(op, 1, in.width)};
  }
};

// One axis: kernel position k, for the result at position p, reads position p + step(k) of phase phase(k) of the
// source, which is (p + step(k)) * stride + start(phase(k)) in the source itself, or zero outside of it.
class Axis {
 public:
  int64_t results;  // positions of the result; of an input gradient: of its longest phase
  int64_t source;   // size
  int64_t stride;   // of positions of a phase in the source
  int64_t taps;     // positions of the kernel
  int64_t phases;   // of the source, those that are read
  int64_t reach;    // largest step

  static Axis forward(const ConvGeometry& g, int axis, int64_t input, int64_t output) {
    Axis result(g, axis, output, input);
    result.stride = result.s_, result.phases = g.phases(axis);
    result.start_ = -g.pad[2 * axis], result.pad_ = 0;
    result.reach = result.passed(result.taps - 1);
    return result;
  }

  // Of the gradient of the input, from that of the output. Later positions of the kernel read earlier ones.
  static Axis gradient(const ConvGeometry& g, int axis, int64_t input, int64_t output) {
    Axis result(g, axis, (input + g.stride[axis] - 1) / g.stride[axis], output);
    result.stride = 1, result.phases = 1, result.backwards_ = true;
    result.start_ = -result.passed(result.taps - 1);
    result.reach = result.step(0);
    return result;
  }

  int64_t phase(int64_t k) const { return k % phases; }
  int64_t start(int64_t phase) const { return backwards_ ? start_ : start_ + phase * dilation_ % s_; }
  int64_t step(int64_t k) const { return backwards_ ? -start_ - passed(k) : passed(k); }

 private:
  Axis(const ConvGeometry& g, int axis, int64_t results, int64_t source)
      : results(results),
        source(source),
        taps(g.kernel[axis]),
        s_(g.stride[axis]),
        dilation_(g.dilation[axis]),
        pad_(g.pad[2 * axis]) {}

  // Whole strides from the first number that is not padding to position k of the kernel, rounded down.
  int64_t passed(int64_t k) const {
    const int64_t at = k * dilation_ - pad_;
    return at / s_ - (at % s_ < 0);
  }

  int64_t s_, dilation_, pad_, start_;
  bool backwards_ = false;
};

// Positions of a phase of an input: (p * stride + phase) < input.
inline int64_t positions_of_phase(int64_t input, int64_t stride, int64_t phase) {
  return std::max<int64_t>((input - phase + stride - 1) / stride, 0);
}

}  // namespace sparseprune
