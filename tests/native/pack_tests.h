// The kernels that pack activations into panels and unpack sums, and the sums of a panel's rows.
#pragma once
#include <bit>
#include <cmath>
#include <iterator>
#include <limits>
#include <vector>

#include "panel_testing.h"

namespace sparseprune {

template <class Element>
class PackTests : PanelTesting<Element> {
 public:
  using PanelTesting<Element>::PanelTesting;

  void run() const {
    for (int features : {0, 1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 29, 31, 32, 33, 47}) {
      const bool every_batch = features == 1 || features == 17 || features == 47;
      for (int batch = 1; batch <= panel_width; batch += every_batch || batch % 16 > 13 ? 1 : batch % 16 ? 6 : 1)
        for (bool batch_inner : {false, true})
          for (bool loose : {false, true}) {
            pack(features, batch, batch_inner, loose, false);
            pack(features, batch, batch_inner, loose, true);
            unpack(features, batch, batch_inner, loose);
          }
      for (int width : all_widths<Element>())
        for (bool loose : {false, true}) add_row_sums(features, width, loose);
    }
  }

 private:
  using Base = PanelTesting<Element>;
  using Base::any_element, Base::any_sum, Base::begin_case, Base::fill, Base::kernels_, Base::position,
      Base::width_for;
  using typename Base::Scalar;

  void pack(int features, int batch, bool batch_inner, bool loose, bool gated) const {
    begin_case("pack", "", "features %d, batch %d, batch_inner %d, loose %d, gated %d", features, batch,
               batch_inner, loose, gated);
    const int width = loose ? panel_width : width_for(batch);
    const Activation<Element> x("x", features, batch, batch_inner, loose ? 3 : 0);
    const Activation<Element> gate("gate", gated ? features : 0, gated ? batch : 0, batch_inner, loose ? 5 : 0);
    const PanelMemory<Element> panel("panel", features, width, loose);
    const double gates[] = {1, -1, 0, -0.0, NAN, 3, -INFINITY, INFINITY};
    x.matrix.fill(any_element);
    gate.matrix.fill([&] { return element<Element>(gates[random_number() % 8]); });
    kernels_.pack(x.view_from(0), gated ? gate.view_from(0) : Strided<const Element>{}, features, batch,
                  panel.panel());
    for (int f = 0; f < features; ++f)
      for (int b = 0; b < width; ++b) {
        const bool zero = b >= batch || (gated && widened(gate.at(f, b)) <= 0);
        const double expected = zero ? 0 : double(widened(x.at(f, b))), actual = double(widened(panel.at(f, b)));
        if (!same(expected, actual)) fail("panel", f, b, expected, actual);
      }
    panel.check_gaps();
  }

  void unpack(int features, int batch, bool batch_inner, bool loose) const {
    begin_case("unpack", "", "features %d, batch %d, batch_inner %d, loose %d", features, batch, batch_inner,
               loose);
    const int width = loose ? panel_width : width_for(batch);
    const PanelMemory<Scalar> panel("panel", features, width, loose);
    const Activation<Element> y("y", features, batch, batch_inner, loose ? 3 : 0);
    const float largest = std::numeric_limits<float>::max(), smallest = std::numeric_limits<float>::denorm_min();
    // Were its bits rounded up, it would be -0.
    const double last_nan = std::bit_cast<double>(std::numeric_limits<int64_t>::max());
    const double rare[] = {NAN,      last_nan, INFINITY, -INFINITY,      largest, -largest,
                           smallest, 257,      259,      1 + 1 / 1024.0, -0.0};
    panel.fill([&] {
      const unsigned kind = random_number() % 20;
      return Scalar(kind < std::size(rare) ? rare[kind] : small_integer() * 331.0 / 256);
    });
    kernels_.unpack(panel.read_only(), features, batch, y.view());
    for (int f = 0; f < features; ++f)
      for (int b = 0; b < batch; ++b) {
        const double expected = nearest(double(panel.at(f, position(b))), Element{});
        const double actual = double(widened(y.at(f, b)));
        if (!same(expected, actual)) fail("y", f, b, expected, actual);
      }
    y.matrix.check_gaps();
  }

  void add_row_sums(int features, int width, bool loose) const {
    begin_case("add_row_sums", "", "features %d, width %d, loose %d", features, width, loose);
    const PanelMemory<Element> panel("panel", features, width, loose);
    const Buffer<Scalar> sum("sum", features);
    panel.fill(any_element);
    std::vector<double> expected;
    for (int f = 0; f < features; ++f) {
      sum[f] = any_sum();
      expected.push_back(double(sum[f]));
      for (int b = 0; b < width; ++b) expected.back() += double(widened(panel.at(f, b)));
    }
    kernels_.add_row_sums(panel.read_only(), features, sum.data());
    check(sum, expected, "sum");
  }
};

}  // namespace sparseprune
