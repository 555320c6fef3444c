// Every kernel of every instruction set of this processor, over sizes that leave every remainder, against plain
// loops. Operands lie in buffers of exactly the size that kernels.h asks for (see buffers.h).
//
//   kernels_test heap before_guard after_guard    where buffers are put; all of them where none is named
//
// All numbers are small integers, which sums hold exactly in any order: results are equal, not close.
#include "cpu/kernels/kernels.h"

#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "batch_norm_tests.h"
#include "conv_tests.h"
#include "cpu/kernels/isa.h"
#include "problems.h"

namespace sparseprune {
namespace {

template <class Element>
std::vector<int> all_widths() {
  std::vector<int> widths;
  for (int width = sample_multiple<Element>; width <= panel_width; width += sample_multiple<Element>)
    widths.push_back(width);
  return widths;
}

// ---- the tests ----

template <class Element>
class Tests {
 public:
  Tests(const std::string& isa, const KernelsOf<Element>& kernels, int lanes)
      : isa_(isa), kernels_(kernels), lanes_(lanes) {}

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

  // ---- layout ----

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
    const double rare[] = {NAN, INFINITY, -INFINITY, largest, -largest, smallest, 257, 259, 1 + 1 / 1024.0, -0.0};
    panel.fill([&] {
      const unsigned kind = random_number() % 20;
      return Scalar(kind < 10 ? rare[kind] : small_integer() * 331.0 / 256);
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

  // ---- products ----

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
              const Epilogue<Element> epilogue{add || block > 0, last && with_bias ? bias.data() + row : nullptr,
                                               last && relu};
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
      kernels_.spmm(w.segments(block, 0, shape.rows), block_rows, value.data(), packed.read_only(),
                    {block > 0, block + 1 == shape.blocks ? bias.data() : nullptr, false}, sums.panel());
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

  static void fill(const Buffer<Scalar>& buffer) {
    for (int64_t i = 0; i < buffer.size(); ++i) buffer[i] = any_sum();
  }
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

  std::string isa_;
  const KernelsOf<Element>& kernels_;
  int lanes_;  // of a vector of sums
};

int run(const std::vector<std::string>& placements) {
  std::string isas;
  for (const std::string& isa : available_isas()) isas += (isas.empty() ? "" : ", ") + isa;
  std::string where;
  for (const std::string& name : placements) {
    where += (where.empty() ? "" : ", ") + name;
    if (name == "heap") {
      placement = Placement::heap;
    } else if (name == "before_guard") {
      placement = Placement::before_guard;
    } else if (name == "after_guard") {
      placement = Placement::after_guard;
    } else {
      fprintf(stderr, "kernels_test: expected heap, before_guard or after_guard, got %s\n", name.c_str());
      return 2;
    }
    for (const std::string& isa : available_isas()) {
      set_isa(isa);
      const Kernels& kernels = current_isa().kernels();
      const int lanes = isa == "avx512" ? 16 : isa == "avx2" ? 8 : 1;
      Tests<float>(isa, kernels.of_float, lanes).run();
      Tests<BFloat16>(isa, kernels.of_bfloat16, lanes).run();
      ConvTests<float>(isa, kernels.of_float).run();
      ConvTests<BFloat16>(isa, kernels.of_bfloat16).run();
      BatchNormTests<float>(isa, kernels.of_float).run();
      BatchNormTests<BFloat16>(isa, kernels.of_bfloat16).run();
    }
    Tests<double>("scalar", double_kernels(), 1).run();
    ConvTests<double>("scalar", double_kernels()).run();
    BatchNormTests<double>("scalar", double_kernels()).run();
  }
  printf("kernels_test: %s; buffers %s: %ld cases, %ld failures\n", isas.c_str(), where.c_str(), cases, failures);
  return failures ? 1 : 0;
}

}  // namespace
}  // namespace sparseprune

int main(int count, char** arguments) {
  report_faults();
  std::vector<std::string> placements(arguments + 1, arguments + count);
  if (placements.empty()) placements = {"heap", "before_guard", "after_guard"};
  return sparseprune::run(placements);
}
