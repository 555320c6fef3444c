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
#include <vector>

#include "common/checks.h"

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
    const ConvGeometry result{g[0], {g[1], g[2]}, {g[3], g[4]}, {g[5], g[6], g[7], g[8]}, {g[9], g[10]}, g[11]};
    check(result.in_channels >= 0 && result.groups >= 1 && result.in_channels % result.groups == 0, op,
          ": expected in_channels divisible by groups, got ", g[0], " and ", g[11]);
    for (int axis = 0; axis < 2; ++axis) {
      check(result.kernel[axis] >= 1 && result.stride[axis] >= 1 && result.dilation[axis] >= 1, op,
            ": expected kernel size, stride and dilation of at least 1, got ", result.kernel[axis], ", ",
            result.stride[axis], " and ", result.dilation[axis]);
      check(result.pad[2 * axis] >= 0 && result.pad[2 * axis + 1] >= 0, op,
            ": expected padding of at least 0, got ", result.pad[2 * axis], " and ", result.pad[2 * axis + 1]);
    }
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
    return taps() == 1 && phases() == 1 && pad[0] == 0 && pad[1] == 0 && pad[2] == 0 && pad[3] == 0;
  }
  int64_t taps() const { return kernel[0] * kernel[1]; }
  int64_t group_channels() const { return in_channels / groups; }
  int64_t cols() const { return group_channels() * taps(); }  // of the weight as a matrix
  int64_t phases() const { return stride[0] * stride[1]; }

  int64_t output_size(const char* op, int axis, int64_t input) const {
    const int64_t padded = input + pad[2 * axis] + pad[2 * axis + 1],
                  reach = dilation[axis] * (kernel[axis] - 1) + 1;
    check(padded >= reach, op, ": expected a padded input of at least ", reach, " (the kernel's reach) in ",
          axis == 0 ? "height" : "width", ", got ", padded);
    return (padded - reach) / stride[axis] + 1;
  }

  ImageSize output_size(const char* op, ImageSize in) const {
    return {output_size(op, 0, in.height), output_size(op, 1, in.width)};
  }

  // The phase of the input whose gradient kernel position k adds to.
  int64_t phase_of(int axis, int64_t k) const {
    const int64_t s = stride[axis];
    return ((k * dilation[axis] - pad[2 * axis]) % s + s) % s;
  }
  int64_t phase_of_tap(int64_t tap) const {
    return phase_of(0, tap / kernel[1]) * stride[1] + phase_of(1, tap % kernel[1]);
  }
};

// One axis: kernel position k, for the result at position p, reads position p + step[k] of phase[k] of the source,
// which is (p + step[k]) * stride + phases[phase[k]] + first in the source itself, or zero outside of it.
struct Axis {
  int64_t results;  // positions of the result; of an input gradient: of its longest phase
  int64_t source;   // size
  int64_t stride, first;
  std::vector<int64_t> phases;  // those that are read
  std::vector<int64_t> phase, step;
  int64_t reach = 0;  // largest step

  static Axis forward(const ConvGeometry& g, int axis, int64_t input, int64_t output) {
    Axis result{output, input, g.stride[axis], -g.pad[2 * axis], {}, {}, {}};
    for (int64_t k = 0; k < g.kernel[axis]; ++k) {
      const int64_t at = k * g.dilation[axis], phase = at % g.stride[axis];
      auto found = std::find(result.phases.begin(), result.phases.end(), phase);
      if (found == result.phases.end()) found = result.phases.insert(found, phase);
      result.phase.push_back(found - result.phases.begin());
      result.step.push_back(at / g.stride[axis]);
    }
    result.finish();
    return result;
  }

  static Axis gradient(const ConvGeometry& g, int axis, int64_t input, int64_t output) {
    const int64_t s = g.stride[axis];
    Axis result{(input + s - 1) / s, output, 1, 0, {0}, {}, {}};
    for (int64_t k = 0; k < g.kernel[axis]; ++k) {
      result.phase.push_back(0);
      result.step.push_back((g.phase_of(axis, k) + g.pad[2 * axis] - k * g.dilation[axis]) / s);
    }
    result.first = *std::min_element(result.step.begin(), result.step.end());
    for (int64_t& step : result.step) step -= result.first;
    result.finish();
    return result;
  }

 private:
  void finish() { reach = *std::max_element(step.begin(), step.end()); }
};

// Positions of a phase of an input: (p * stride + phase) < input.
inline int64_t positions_of_phase(int64_t input, int64_t stride, int64_t phase) {
  return std::max<int64_t>((input - phase + stride - 1) / stride, 0);
}

}  // namespace sparseprune
