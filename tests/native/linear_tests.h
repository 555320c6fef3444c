// The kernels of linear layers: products and gradients one by one, then whole as the operators put them together.
#pragma once
#include <cmath>
#include <vector>

#include "panel_testing.h"

namespace sparseprune {

template <class Element>
class LinearTests : PanelTesting<Element> {
 public:
  using PanelTesting<Element>::PanelTesting;

  void run() const {
    int turn = 0;  // with and without room between the features
    for (const Shape& shape : all_shapes())
      for (int block_rows : all_block_rows) {
        const Pattern of_weight(shape, Order::rows_first), of_transpose(shape, Order::blocks_first);
        spmv(of_weight, block_rows);
        ++turn;
        for (int width : all_widths<Element>()) {
          const bool loose = ++turn % 2;
          spmm(of_weight, block_rows, width, loose);
          gradients(of_transpose, block_rows, width, loose);
        }
        if (shape.blocks > 1)
          for (int batch = 1; batch <= panel_width; batch += block_rows == 1 ? 1 : 9)
            for (bool batch_inner : {false, true}) {
              forward(of_weight, block_rows, batch, batch_inner);
              backward(of_transpose, block_rows, batch, batch_inner);
            }
      }
  }

 private:
  using Base = PanelTesting<Element>;
  using Base::any_element, Base::any_sum, Base::begin_case, Base::fill, Base::kernels_, Base::position,
      Base::width_for;
  using typename Base::Scalar;

  // y[i V + v, b] = sum_j value[j V + v] x[column_j, b]
  template <class X>
  static std::vector<double> product(const Pattern& w, int block_rows, int64_t width, const Buffer<Scalar>& value,
                                     X x) {
    std::vector<double> y(size_t(w.shape.rows * block_rows * width));
    for (size_t j = 0; j < w.nonzeros.size(); ++j)
      for (int v = 0; v < block_rows; ++v)
        for (int64_t b = 0; b < width; ++b)
          y[size_t((w.nonzeros[j].row * block_rows + v) * width + b)] +=
              double(value[int64_t(j) * block_rows + v]) * x(w.nonzeros[j].col, b);
    return y;
  }

  void spmm(const Pattern& w, int block_rows, int width, bool loose) const {
    const Shape& shape = w.shape;
    const int rows = shape.rows * block_rows;
    const Buffer<Scalar> value("value", w.nnz() * block_rows), bias("bias", rows);
    const PanelMemory<Element> x("x", shape.cols(), width, loose);
    fill(value);
    fill(bias);
    if (rows > 1) bias[rows - 1] = Scalar(NAN);  // stays NaN through ReLU
    x.fill(any_element);
    const std::vector<double> exact =
        product(w, block_rows, width, value, [&](int col, int64_t b) { return double(widened(x.at(col, b))); });
    for (bool add : {false, true})
      for (bool with_bias : {false, true})
        for (bool relu : {false, true}) {
          begin_case("spmm", shape.name.c_str(), "V %d, width %d, loose %d, add %d, bias %d, relu %d", block_rows,
                     width, loose, add, with_bias, relu);
          const PanelMemory<Scalar> y("y", rows, width, loose);
          std::vector<double> expected = exact;
          for (int r = 0; r < rows; ++r)
            for (int b = 0; b < width; ++b) {
              double& e = expected[size_t(r * width + b)];
              if (add) e += double(y.at(r, position(b)) = any_sum());
              if (with_bias) e += double(bias[r]);
              if (relu && e < 0) e = 0;
            }
          for_parts(shape.rows, [&](int first, int count) {
            const int64_t row = int64_t(first) * block_rows;
            for (int block = 0; block < shape.blocks; ++block) {
              const bool last = block + 1 == shape.blocks;
              const Epilogue<Scalar> epilogue{add || block > 0 ? rows_of(y, row).data : nullptr,
                                              last && with_bias ? bias.data() + row : nullptr, last && relu};
              kernels_.spmm(w.segments(block, first, count), block_rows, value.data(),
                            block_of(x, int64_t(block) * shape.block_cols), epilogue, rows_of(y, row));
            }
          });
          check_sums(y, expected);
        }
  }

  void spmv(const Pattern& w, int block_rows) const {
    const Shape& shape = w.shape;
    begin_case("spmv", shape.name.c_str(), "V %d", block_rows);
    const int rows = shape.rows * block_rows;
    const Buffer<Element> value("value", w.nnz() * block_rows);
    const Buffer<Scalar> wide_value("wide value", value.size()), x("x", shape.cols()), y("y", rows);
    fill(wide_value);
    fill(x);
    fill(y);
    for (int64_t k = 0; k < value.size(); ++k) value[k] = element<Element>(double(wide_value[k]));
    std::vector<double> expected =
        product(w, block_rows, 1, wide_value, [&](int col, int64_t) { return double(x[col]); });
    for (int r = 0; r < rows; ++r) expected[size_t(r)] += double(y[r]);
    for_parts(shape.rows, [&](int first, int count) {
      kernels_.spmv(w.segments(0, first, count), {shape.blocks, shape.block_cols, shape.rows}, block_rows,
                    value.data(), x.data(), y.data() + int64_t(first) * block_rows);
    });
    check(y, expected, "y");
  }

  // Of the transposed pattern `w`, all of it: d_x [rows, width] and d_value [nnz V].
  struct Gradients {
    std::vector<double> d_x, d_value;
  };
  template <class G, class X>
  static Gradients exact_gradients(const Pattern& w, int block_rows, int width, const Buffer<Scalar>& value, G g,
                                   X x) {
    Gradients exact{std::vector<double>(size_t(w.shape.rows * width)),
                    std::vector<double>(size_t(w.nnz() * block_rows))};
    for (size_t j = 0; j < w.nonzeros.size(); ++j)
      for (int v = 0; v < block_rows; ++v) {
        const auto [row, col] = w.nonzeros[j];
        const size_t k = j * size_t(block_rows) + size_t(v);
        for (int b = 0; b < width; ++b) {
          const double g_number = g(col * block_rows + v, b);
          exact.d_x[size_t(row * width + b)] += double(value[int64_t(k)]) * g_number;
          exact.d_value[k] += x(row, b) * g_number;
        }
      }
    return exact;
  }

  void gradients(const Pattern& w, int block_rows, int width, bool loose) const {
    const Shape& shape = w.shape;
    const int64_t block_features = int64_t(shape.block_cols) * block_rows;
    const Buffer<Scalar> value("value", w.nnz() * block_rows);
    const PanelMemory<Element> g("g", int64_t(shape.cols()) * block_rows, width, loose);
    const PanelMemory<Element> x("x", shape.rows, width, loose);
    fill(value);
    g.fill(any_element);
    x.fill(any_element);
    const auto number = [](const auto& panel) {
      return [&](int64_t f, int64_t b) { return double(widened(panel.at(f, b))); };
    };
    const Gradients exact = exact_gradients(w, block_rows, width, value, number(g), number(x));
    for (int wanted : {1, 2, 3})
      for (bool add : {false, true}) {
        const bool with_x = wanted & 1, with_value = wanted & 2;
        begin_case("gradients", shape.name.c_str(), "V %d, width %d, loose %d, d_x %d, d_value %d, add %d",
                   block_rows, width, loose, with_x, with_value, add);
        const PanelMemory<Scalar> d_x("d_x", with_x ? shape.rows : 0, width, loose);
        const Buffer<Scalar> d_value("d_value", with_value ? value.size() : 0);
        Gradients expected = exact;
        for (int64_t r = 0; add && r < d_x.lines; ++r)
          for (int b = 0; b < width; ++b)
            expected.d_x[size_t(r * width + b)] += double(d_x.at(r, position(b)) = any_sum());
        fill(d_value);
        for (int64_t k = 0; k < d_value.size(); ++k) expected.d_value[size_t(k)] += double(d_value[k]);
        for_parts(shape.rows, [&](int first, int count) {
          for (int block = 0; block < shape.blocks; ++block)
            kernels_.gradients(w.segments(block, first, count), block_rows, with_x ? value.data() : nullptr,
                               block_of(g, block * block_features),
                               with_value ? block_of(x, first) : Panel<const Element>{}, add || block > 0,
                               with_x ? rows_of(d_x, first) : Panel<Scalar>{},
                               with_value ? d_value.data() : nullptr);
        });
        if (with_x) check_sums(d_x, expected.d_x);
        check(d_value, expected.d_value, "d_value");
      }
  }

  // ---- whole products, as the operators put them together ----

  void forward(const Pattern& w, int block_rows, int batch, bool batch_inner) const {
    const Shape& shape = w.shape;
    begin_case("forward", shape.name.c_str(), "V %d, batch %d, batch_inner %d", block_rows, batch, batch_inner);
    const int rows = shape.rows * block_rows, width = width_for(batch), room = batch % 3;
    const Buffer<Scalar> value("value", w.nnz() * block_rows), bias("bias", rows);
    const Activation<Element> x("x", shape.cols(), batch, batch_inner, room),
        y("y", rows, batch, batch_inner, room);
    const PanelMemory<Scalar> sums("sums", rows, width, false);
    fill(value);
    fill(bias);
    x.matrix.fill(any_element);
    for (int block = 0; block < shape.blocks; ++block) {
      const int64_t first = int64_t(block) * shape.block_cols;
      const PanelMemory<Element> packed("packed x", shape.cols_of(block), width, false);
      kernels_.pack(x.view_from(first), {}, shape.cols_of(block), batch, packed.panel());
      kernels_.spmm(
          w.segments(block, 0, shape.rows), block_rows, value.data(), packed.read_only(),
          {block > 0 ? sums.panel().data : nullptr, block + 1 == shape.blocks ? bias.data() : nullptr, false},
          sums.panel());
    }
    kernels_.unpack(sums.read_only(), rows, batch, y.view());
    std::vector<double> expected =
        product(w, block_rows, batch, value, [&](int col, int64_t b) { return double(widened(x.at(col, b))); });
    for (int r = 0; r < rows; ++r)
      for (int b = 0; b < batch; ++b) expected[size_t(r * batch + b)] += double(bias[r]);
    check_activation(y, expected);
  }

  void backward(const Pattern& w, int block_rows, int batch, bool batch_inner) const {
    const Shape& shape = w.shape;
    begin_case("backward", shape.name.c_str(), "V %d, batch %d, batch_inner %d", block_rows, batch, batch_inner);
    const int features = shape.cols() * block_rows, width = width_for(batch), room = batch % 3;
    const Buffer<Scalar> value("value", w.nnz() * block_rows);
    const Buffer<Scalar> d_value("d_value", value.size()), d_bias("d_bias", features);
    const Activation<Element> g("g", features, batch, batch_inner, room),
        gate("gate", features, batch, batch_inner, 2);
    const Activation<Element> x("x", shape.rows, batch, batch_inner, room),
        d_x("d_x", shape.rows, batch, batch_inner, 1);
    const PanelMemory<Element> packed_x("packed x", shape.rows, width, false);
    const PanelMemory<Scalar> sums("sums", shape.rows, width, false);
    fill(value);
    fill(d_value);
    fill(d_bias);
    for (const Activation<Element>* a : {&g, &gate, &x}) a->matrix.fill(any_element);
    const auto gated = [&](int64_t f, int64_t b) {
      return widened(gate.at(f, b)) <= 0 ? 0.0 : double(widened(g.at(f, b)));
    };
    Gradients expected = exact_gradients(w, block_rows, batch, value, gated,
                                         [&](int64_t f, int64_t b) { return double(widened(x.at(f, b))); });
    for (int64_t k = 0; k < d_value.size(); ++k) expected.d_value[size_t(k)] += double(d_value[k]);
    std::vector<double> expected_d_bias;
    for (int f = 0; f < features; ++f) {
      expected_d_bias.push_back(double(d_bias[f]));
      for (int b = 0; b < batch; ++b) expected_d_bias.back() += gated(f, b);
    }
    kernels_.pack(x.view_from(0), {}, shape.rows, batch, packed_x.panel());
    for (int block = 0; block < shape.blocks; ++block) {
      const int64_t first = int64_t(block) * shape.block_cols * block_rows,
                    count = shape.cols_of(block) * block_rows;
      const PanelMemory<Element> packed("packed g", count, width, false);
      kernels_.pack(g.view_from(first), gate.view_from(first), count, batch, packed.panel());
      kernels_.add_row_sums(packed.read_only(), count, d_bias.data() + first);
      kernels_.gradients(w.segments(block, 0, shape.rows), block_rows, value.data(), packed.read_only(),
                         packed_x.read_only(), block > 0, sums.panel(), d_value.data());
    }
    kernels_.unpack(sums.read_only(), shape.rows, batch, d_x.view());
    check_activation(d_x, expected.d_x);
    check(d_value, expected.d_value, "d_value");
    check(d_bias, expected_d_bias, "d_bias");
  }

  // ---- helpers ----

  static Panel<const Element> block_of(const PanelMemory<Element>& x, int64_t first) {
    return {x.memory.data() + first * x.stride, x.stride, int(x.width)};
  }
  static Panel<Scalar> rows_of(const PanelMemory<Scalar>& y, int64_t first) {
    return {y.memory.data() + first * y.stride, y.stride, int(y.width)};
  }
  void check_sums(const PanelMemory<Scalar>& y, const std::vector<double>& expected) const {
    for (int64_t r = 0; r < y.lines; ++r)
      for (int64_t b = 0; b < y.width; ++b) {
        const double e = expected[size_t(r * y.width + b)], actual = double(y.at(r, position(b)));
        if (!same(e, actual)) fail(y.name, r, b, e, actual);
      }
    y.check_gaps();
  }
  static void check_activation(const Activation<Element>& y, const std::vector<double>& expected) {
    for (int64_t f = 0; f < y.features; ++f)
      for (int64_t b = 0; b < y.batch; ++b) {
        const double e = nearest(expected[size_t(f * y.batch + b)], Element{}),
                     actual = double(widened(y.at(f, b)));
        if (!same(e, actual)) fail(y.matrix.name, f, b, e, actual);
      }
    y.matrix.check_gaps();
  }
};

}  // namespace sparseprune
