// What the tests of linear layers' kernels share: the kernels of an instruction set, numbers, and how panels hold
// them.
#pragma once
#include <cstdio>
#include <string>
#include <type_traits>
#include <vector>

#include "problems.h"

namespace sparseprune {

template <class Element>
std::vector<int> all_widths() {
  std::vector<int> widths;
  for (int width = sample_multiple<Element>; width <= panel_width; width += sample_multiple<Element>)
    widths.push_back(width);
  return widths;
}

template <class Element>
class PanelTesting {
 public:
  PanelTesting(const std::string& isa, const KernelsOf<Element>& kernels, int lanes)
      : isa_(isa), kernels_(kernels), lanes_(lanes) {}

 protected:
  using Scalar = Sum<Element>;

  // Where a panel of sums holds sample b: see Panel.
  int64_t position(int64_t b) const {
    if (!std::is_same_v<Element, BFloat16> || lanes_ == 1) return b;
    const int64_t in_pair = b % (2 * lanes_);
    return b - in_pair + in_pair % 2 * lanes_ + in_pair / 2;
  }

  static int width_for(int batch) {
    return (batch + sample_multiple<Element> - 1) / sample_multiple<Element> * sample_multiple<Element>;
  }

  template <class... Numbers>
  void begin_case(const char* kernel, const char* shape, const char* format, Numbers... numbers) const {
    char rest[160];
    snprintf(rest, sizeof rest, format, numbers...);
    describe("%s %s %s%s%s: %s", isa_.c_str(), name_of<Element>(), kernel, *shape ? ", " : "", shape, rest);
    ++cases;
  }

  static Element any_element() { return element<Element>(small_integer()); }
  static Scalar any_sum() { return Scalar(small_integer()); }
  static void fill(const Buffer<Scalar>& buffer) {
    for (int64_t i = 0; i < buffer.size(); ++i) buffer[i] = any_sum();
  }

  std::string isa_;
  const KernelsOf<Element>& kernels_;
  int lanes_;  // of a vector of sums
};

}  // namespace sparseprune
