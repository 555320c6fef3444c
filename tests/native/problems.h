// What the tests of the kernels compute with: numbers, operands in buffers of exactly their size, and patterns.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "buffers.h"
#include "cpu/kernels/kernels.h"

namespace sparseprune {

inline long cases = 0;
inline long failures = 0;
constexpr long most_failures = 20;

constexpr int all_block_rows[] = {1, 2, 4, 8, 16};

inline bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

inline void fail(const char* what, int64_t row, int64_t column, double expected, double actual) {
  fprintf(stderr, "FAILED %s: %s[%ld, %ld]: expected %g, got %g\n", current_case, what, long(row), long(column),
          expected, actual);
  if (++failures == most_failures) exit(1);
}

// ---- numbers ----

inline unsigned random_number() {  // std::mt19937 would take a quarter of the time of all tests
  static uint64_t state = 1;
  state = state * 6364136223846793005 + 1442695040888963407;
  return unsigned(state >> 40);
}

inline int small_integer() { return int(random_number() % 9) - 4; }

template <class Element>
Element element(double integer) {
  return rounded<Element>(Sum<Element>(integer));
}

// The nearest bfloat16, of two equally near ones the even.
inline double nearest(double a, BFloat16) {
  if (std::isnan(a) || std::isinf(a)) return a;
  const float single = float(std::fabs(a));
  uint32_t bits;
  memcpy(&bits, &single, sizeof bits);
  const auto value = [](uint32_t upper_half) {
    return upper_half == 0x7f80 ? std::ldexp(1.0, 128) : double(widened(BFloat16{uint16_t(upper_half)}));
  };
  uint32_t below = bits >> 16;
  const double low = std::fabs(a) - value(below), high = value(below + 1) - std::fabs(a);
  if (high < low || (high == low && below % 2 == 1)) ++below;
  return std::copysign(double(widened(BFloat16{uint16_t(below)})), a);
}
inline double nearest(double a, float) { return double(float(a)); }
inline double nearest(double a, double) { return a; }

template <class Element>
const char* name_of();
template <>
inline const char* name_of<float>() {
  return "float32";
}
template <>
inline const char* name_of<BFloat16>() {
  return "bfloat16";
}
template <>
inline const char* name_of<double>() {
  return "float64";
}

// ---- operands ----

// `lines` times `width` numbers, `stride` apart; nothing lies behind the last one, and nothing between them is
// written.
template <class T>
struct Matrix {
  const char* name;
  int64_t lines, width, stride;
  Buffer<T> memory;

  Matrix(const char* name, int64_t lines, int64_t width, int64_t stride)
      : name(name),
        lines(lines),
        width(width),
        stride(stride),
        memory(name, lines ? (lines - 1) * stride + width : 0) {}

  T& at(int64_t line, int64_t i) const { return memory[line * stride + i]; }

  template <class Make>
  void fill(Make make) const {
    for (int64_t line = 0; line < lines; ++line)
      for (int64_t i = 0; i < width; ++i) at(line, i) = make();
  }
  void check_gaps() const {
    for (int64_t line = 0; line + 1 < lines; ++line)
      for (int64_t i = width; i < stride; ++i)
        if (!memory.is_unset(line * stride + i)) fail(name, line, i, NAN, double(widened(at(line, i))));
  }
};

template <class T>
void check(const Buffer<T>& actual, const std::vector<double>& expected, const char* name) {
  for (int64_t i = 0; i < actual.size(); ++i)
    if (!same(double(actual[i]), expected[size_t(i)])) fail(name, i, 0, expected[size_t(i)], double(actual[i]));
}

// A panel of features, with or without room between them.
template <class T>
struct PanelMemory : Matrix<T> {
  PanelMemory(const char* name, int64_t features, int width, bool loose)
      : Matrix<T>(name, features, width, width + (loose ? 3 : 0)) {}
  Panel<T> panel() const { return {this->memory.data(), this->stride, int(this->width)}; }
  Panel<const T> read_only() const { return {this->memory.data(), this->stride, int(this->width)}; }
};

// Activations of either layout.
template <class T>
struct Activation {
  int64_t features, batch;
  bool batch_inner;
  Matrix<T> matrix;

  Activation(const char* name, int64_t features, int64_t batch, bool batch_inner, int64_t room)
      : features(features),
        batch(batch),
        batch_inner(batch_inner),
        matrix(name, batch_inner ? features : batch, batch_inner ? batch : features,
               (batch_inner ? batch : features) + room) {}

  T& at(int64_t f, int64_t b) const { return batch_inner ? matrix.at(f, b) : matrix.at(b, f); }
  Strided<T> view() const {
    return {matrix.memory.data(), batch_inner ? matrix.stride : 1, batch_inner ? 1 : matrix.stride};
  }
  // From feature `first` on.
  Strided<const T> view_from(int64_t first) const {
    const Strided<T> all = view();
    return {all.data + first * all.feature_stride, all.feature_stride, all.batch_stride};
  }
};

// ---- patterns ----

struct Shape {
  std::string name;
  int rows, blocks, block_cols, last_block_cols;
  std::vector<int> counts;  // of nonzeros: [rows, blocks]

  int cols_of(int block) const { return block + 1 == blocks ? last_block_cols : block_cols; }
  int cols() const { return (blocks - 1) * block_cols + last_block_cols; }
};

inline Shape single_block(const std::string& name, int cols, std::vector<int> counts) {
  return {name, int(counts.size()), 1, cols, cols, counts};
}

inline std::vector<Shape> all_shapes() {
  std::vector<Shape> shapes;
  for (int n = 0; n <= 40; ++n) shapes.push_back(single_block("row of " + std::to_string(n), n + 1 + n / 3, {n}));
  std::vector<int> rising, falling, scattered;
  for (int i = 0; i <= 40; ++i) rising.push_back(i), falling.push_back(40 - i);
  for (int i = 0; i < 13; ++i) scattered.push_back(i % 4 == 0 ? 0 : i * 7 % 11);
  shapes.push_back(single_block("rising", 43, rising));
  shapes.push_back(single_block("falling", 41, falling));
  shapes.push_back(single_block("scattered", 11, scattered));
  shapes.push_back(single_block("no row", 5, {}));
  shapes.push_back(single_block("no nonzero", 5, std::vector<int>(7, 0)));
  shapes.push_back(single_block("all", 11, std::vector<int>(5, 11)));
  Shape blocks{"blocks", 17, 3, 19, 7, {}};
  for (int i = 0; i < blocks.rows; ++i)
    for (int b = 0; b < blocks.blocks; ++b) blocks.counts.push_back((i * 5 + b * 3) % 8);
  shapes.push_back(blocks);
  Shape narrow{"narrow blocks", 3, 4, 1, 1, {1, 0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1}};
  shapes.push_back(narrow);
  return shapes;
}

enum class Order { rows_first, blocks_first };  // of the nonzeros in memory: as a plan has them, see plan.h

struct Nonzero {
  int row, col;
};

struct Pattern {
  const Shape& shape;
  Buffer<int32_t> begin, end;  // [blocks, rows]
  Buffer<uint16_t> column;
  std::vector<Nonzero> nonzeros;

  Pattern(const Shape& shape, Order order)
      : shape(shape),
        begin("begin", int64_t(shape.counts.size())),
        end("end", int64_t(shape.counts.size())),
        column("column", [&] {
          int64_t nnz = 0;
          for (int n : shape.counts) nnz += n;
          return nnz;
        }()) {
    const auto add_run = [&](int row, int block) {
      const int n = shape.counts[size_t(row * shape.blocks + block)], cols = shape.cols_of(block);
      begin[block * shape.rows + row] = int32_t(nonzeros.size());
      for (int k = 1; k <= n; ++k) {  // the last column always is one of them
        const int col = k * cols / n - 1;
        column[int64_t(nonzeros.size())] = uint16_t(col);
        nonzeros.push_back({row, block * shape.block_cols + col});
      }
      end[block * shape.rows + row] = int32_t(nonzeros.size());
    };
    if (order == Order::rows_first) {
      for (int row = 0; row < shape.rows; ++row)
        for (int block = 0; block < shape.blocks; ++block) add_run(row, block);
    } else {
      for (int block = 0; block < shape.blocks; ++block)
        for (int row = 0; row < shape.rows; ++row) add_run(row, block);
    }
  }

  int64_t nnz() const { return column.size(); }
  Segments segments(int block, int first_row, int rows) const {
    const int64_t at = int64_t(block) * shape.rows + first_row;
    return {begin.data() + at, end.data() + at, rows, column.data()};
  }
};

// Rows are divided as among two threads, the later ones first: each must leave the other's alone.
template <class Run>
void for_parts(int rows, Run run) {
  const int middle = rows / 2;
  run(middle, rows - middle);
  run(0, middle);
}

}  // namespace sparseprune
