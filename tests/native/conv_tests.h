// The kernels of convolutions.
#pragma once
#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "problems.h"

namespace sparseprune {

// A pattern of rows whose nonzeros read from offsets 0 .. span - 1 on: the last one of all from span - 1.
struct OffsetPattern {
  Buffer<int32_t> start, offset;
  int rows;

  OffsetPattern(const std::vector<int>& counts, int span)
      : start("start", int64_t(counts.size()) + 1),
        offset("offset",
               [&] {
                 int64_t nnz = 0;
                 for (int n : counts) nnz += n;
                 return nnz;
               }()),
        rows(int(counts.size())) {
    start[0] = 0;
    for (int i = 0; i < rows; ++i) start[i + 1] = start[i] + counts[size_t(i)];
    for (int64_t j = 0; j < nnz(); ++j) offset[j] = j + 1 == nnz() ? span - 1 : int(random_number()) % span;
  }
  int64_t nnz() const { return offset.size(); }
  OffsetRows part(int first, int count) const { return {start.data() + first, count, offset.data()}; }
};

// Rows of `numbers` numbers as a Run has them: in pieces of `lanes`, with or without room between.
template <class T>
struct RunMemory {
  const char* name;
  int64_t rows, row_stride, pixel_stride;
  int numbers, lanes;
  Buffer<T> memory;

  RunMemory(const char* name, int64_t rows, int numbers, int lanes, bool loose)
      : name(name),
        rows(rows),
        row_stride(numbers / lanes * (lanes + (loose ? 5 : 0)) + (loose ? 3 : 0)),
        pixel_stride(lanes + (loose ? 5 : 0)),
        numbers(numbers),
        lanes(lanes),
        memory(name, rows ? (rows - 1) * row_stride + (numbers / lanes - 1) * pixel_stride + lanes : 0) {}

  int64_t index(int64_t row, int k) const { return row * row_stride + k / lanes * pixel_stride + k % lanes; }
  T& at(int64_t row, int k) const { return memory[index(row, k)]; }
  Run<T> from(int64_t row) const { return {memory.data() + row * row_stride, row_stride, pixel_stride, lanes}; }
  Run<const T> read_only_from(int64_t row) const {
    return {memory.data() + row * row_stride, row_stride, pixel_stride, lanes};
  }

  void check(const std::vector<double>& expected) const {
    std::vector<bool> written(size_t(memory.size()));
    for (int64_t row = 0; row < rows; ++row)
      for (int k = 0; k < numbers; ++k) {
        written[size_t(index(row, k))] = true;
        const double e = expected[size_t(row * numbers + k)];
        if (!same(e, double(at(row, k)))) fail(name, row, k, e, double(at(row, k)));
      }
    for (int64_t i = 0; i < memory.size(); ++i)
      if (!written[size_t(i)] && !memory.is_unset(i)) fail(name, -1, i, NAN, double(memory[i]));
  }
};

template <class Element>
class ConvTests {
 public:
  ConvTests(const std::string& isa, const KernelsOf<Element>& kernels) : isa_(isa), kernels_(kernels) {}

  void run() const {
    for (int pixels : {1, 2, 5})
      for (int samples = 1; samples <= 67; ++samples)
        for (int lanes : {samples, rounded_up(samples), rounded_up(samples) + 32})
          for (bool loose : {false, true}) {
            pack_pixels(pixels, samples, lanes, loose);
            unpack_pixels(pixels, samples, lanes, loose);
          }

    std::vector<std::vector<int>> patterns{{}, {0, 0, 0}, {3, 0, 5, 1, 9, 0, 2}};
    for (int n = 0; n <= 11; ++n) patterns.push_back({n});
    int turn = 0;  // with and without room, and what becomes of the sums
    for (const std::vector<int>& counts : patterns)
      for (int block_rows : all_block_rows)
        for (int vectors = 1; vectors <= 13; ++vectors) {
          const int numbers = vectors * conv_lanes;
          const OffsetPattern pattern(counts, 1 + 7 * vectors % 31);
          for (int lanes : {numbers, conv_lanes, 4 * conv_lanes})
            if (numbers % lanes == 0) {
              const bool loose = ++turn % 2;
              conv(pattern, block_rows, numbers, lanes, loose, turn / 2 % 2, turn / 4 % 2);
              conv_gradients(pattern, block_rows, numbers, lanes, loose);
            }
        }
  }

 private:
  using Scalar = Sum<Element>;

  static int rounded_up(int samples) { return (samples + conv_lanes - 1) / conv_lanes * conv_lanes; }

  template <class... Numbers>
  void begin_case(const char* kernel, const char* format, Numbers... numbers) const {
    char rest[160];
    snprintf(rest, sizeof rest, format, numbers...);
    describe("%s %s %s: %s", isa_.c_str(), name_of<Element>(), kernel, rest);
    ++cases;
  }

  static void fill(const Buffer<Scalar>& buffer) {
    for (int64_t i = 0; i < buffer.size(); ++i) buffer[i] = Scalar(small_integer());
  }

  // ---- layout ----

  void pack_pixels(int pixels, int samples, int lanes, bool loose) const {
    begin_case("pack_pixels", "pixels %d, samples %d, lanes %d, loose %d", pixels, samples, lanes, loose);
    const Matrix<Element> from("from", pixels, samples, samples + (loose ? 3 : 0));
    const Buffer<Scalar> to("to", int64_t(pixels) * lanes);
    from.fill([] { return element<Element>(small_integer()); });
    kernels_.pack_pixels({from.memory.data(), from.stride, pixels, samples, loose ? 64 : 0}, to.data(), lanes);
    std::vector<double> expected(size_t(to.size()));
    for (int p = 0; p < pixels; ++p)
      for (int b = 0; b < samples; ++b) expected[size_t(p * lanes + b)] = double(widened(from.at(p, b)));
    check(to, expected, "to");
  }

  void unpack_pixels(int pixels, int samples, int lanes, bool loose) const {
    begin_case("unpack_pixels", "pixels %d, samples %d, lanes %d, loose %d", pixels, samples, lanes, loose);
    const Buffer<Scalar> from("from", int64_t(pixels) * lanes);
    const Matrix<Element> to("to", pixels, samples, samples + (loose ? 3 : 0));
    const float largest = std::numeric_limits<float>::max(), smallest = std::numeric_limits<float>::denorm_min();
    const double rare[] = {NAN, INFINITY, -INFINITY, largest, -largest, smallest, 257, 259, 1 + 1 / 1024.0, -0.0};
    for (int64_t i = 0; i < from.size(); ++i) {
      const unsigned kind = random_number() % 20;
      from[i] = Scalar(kind < 10 ? rare[kind] : small_integer() * 331.0 / 256);
    }
    kernels_.unpack_pixels(from.data(), lanes, {to.memory.data(), to.stride, pixels, samples});
    for (int p = 0; p < pixels; ++p)
      for (int b = 0; b < samples; ++b) {
        const double expected = nearest(double(from[int64_t(p) * lanes + b]), Element{});
        const double actual = double(widened(to.at(p, b)));
        if (!same(expected, actual)) fail("to", p, b, expected, actual);
      }
    to.check_gaps();
  }

  // ---- products ----

  static int64_t furthest(const OffsetPattern& w) {
    int64_t last = 0;
    for (int64_t j = 0; j < w.nnz(); ++j) last = std::max<int64_t>(last, w.offset[j]);
    return last;
  }

  // What is read of x or g: nothing where there is no nonzero.
  static int64_t numbers_read(const OffsetPattern& w, int64_t beyond, int numbers) {
    return w.nnz() ? furthest(w) + beyond + numbers : 0;
  }

  // As it is, then with a bias, and with what is added and a ReLU.
  void conv(const OffsetPattern& w, int block_rows, int numbers, int lanes, bool loose, bool with_added,
            bool with_relu) const {
    const int64_t rows = int64_t(w.rows) * block_rows;
    const Buffer<Scalar> value("value", w.nnz() * block_rows), bias("bias", rows);
    const Buffer<Scalar> x("x", numbers_read(w, 0, numbers));
    fill(value);
    fill(bias);
    fill(x);
    std::vector<double> exact(size_t(rows * numbers));
    for (int i = 0; i < w.rows; ++i)
      for (int64_t j = w.start[i]; j < w.start[i + 1]; ++j)
        for (int v = 0; v < block_rows; ++v)
          for (int k = 0; k < numbers; ++k)
            exact[size_t((int64_t(i) * block_rows + v) * numbers + k)] +=
                double(value[j * block_rows + v]) * double(x[w.offset[j] + k]);
    for (bool with_bias : {false, true}) {
      const bool add = with_bias && with_added, relu = with_bias && with_relu;
      begin_case("conv", "rows %d, nonzeros %ld, V %d, n %d, lanes %d, loose %d, add %d, bias %d, relu %d", w.rows,
                 long(w.nnz()), block_rows, numbers, lanes, loose, add, with_bias, relu);
      const RunMemory<Scalar> y("y", rows, numbers, lanes, loose);
      const RunMemory<Scalar> added("added", add ? rows : 0, numbers, lanes, loose);
      std::vector<double> expected = exact;
      for (int64_t i = 0; i < rows; ++i)
        for (int k = 0; k < numbers; ++k) {
          double& e = expected[size_t(i * numbers + k)];
          if (add) e += double(added.at(i, k) = Scalar(small_integer()));
          if (with_bias) e += double(bias[i]);
          if (relu && e < 0) e = 0;
        }
      for_parts(w.rows, [&](int first, int count) {
        const int64_t row = int64_t(first) * block_rows;
        kernels_.conv(w.part(first, count), block_rows, value.data(), x.data(), numbers,
                      {add ? added.from(row).data : nullptr, with_bias ? bias.data() + row : nullptr, relu},
                      y.from(row));
      });
      y.check(expected);
    }
  }

  void conv_gradients(const OffsetPattern& w, int block_rows, int numbers, int lanes, bool loose) const {
    const int64_t g_stride = 3 * conv_lanes + 1;
    const Buffer<Scalar> value("value", w.nnz() * block_rows);
    const Buffer<Scalar> g("g", numbers_read(w, (block_rows - 1) * g_stride, numbers));
    // In one piece where d_x is in several, and the other way round.
    const RunMemory<Scalar> x("x", w.rows, numbers, lanes == numbers ? conv_lanes : numbers, loose);
    fill(value);
    fill(g);
    for (int64_t i = 0; i < w.rows; ++i)
      for (int k = 0; k < numbers; ++k) x.at(i, k) = Scalar(small_integer());
    std::vector<double> exact_x(size_t(w.rows) * size_t(numbers)), exact_value(size_t(value.size()));
    for (int i = 0; i < w.rows; ++i)
      for (int64_t j = w.start[i]; j < w.start[i + 1]; ++j)
        for (int v = 0; v < block_rows; ++v)
          for (int k = 0; k < numbers; ++k) {
            const double number = double(g[w.offset[j] + v * g_stride + k]);
            exact_x[size_t(i) * size_t(numbers) + size_t(k)] += double(value[j * block_rows + v]) * number;
            exact_value[size_t(j * block_rows + v)] += double(x.at(i, k)) * number;
          }
    for (int wanted : {1, 2, 3}) {
      const bool with_x = wanted & 1, with_value = wanted & 2;
      begin_case("conv_gradients", "rows %d, nonzeros %ld, V %d, n %d, lanes %d, loose %d, d_x %d, d_value %d",
                 w.rows, long(w.nnz()), block_rows, numbers, lanes, loose, with_x, with_value);
      const RunMemory<Scalar> d_x("d_x", with_x ? w.rows : 0, numbers, lanes, loose);
      const Buffer<Scalar> d_value("d_value", with_value ? value.size() : 0);
      fill(d_value);
      std::vector<double> expected = exact_value;
      for (int64_t k = 0; k < d_value.size(); ++k) expected[size_t(k)] += double(d_value[k]);
      for_parts(w.rows, [&](int first, int count) {
        kernels_.conv_gradients(w.part(first, count), block_rows, with_x ? value.data() : nullptr, g.data(),
                                g_stride, numbers, with_value ? x.read_only_from(first) : Run<const Scalar>{},
                                with_x ? d_x.from(first) : Run<Scalar>{}, with_value ? d_value.data() : nullptr);
      });
      if (with_x) d_x.check(exact_x);
      check(d_value, expected, "d_value");
    }
  }

  std::string isa_;
  const KernelsOf<Element>& kernels_;
};

}  // namespace sparseprune
