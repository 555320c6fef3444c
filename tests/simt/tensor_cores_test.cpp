// The kernels on tensor cores on the CPU (simt.h) against double precision: rows of lengths around the 16 nonzeros
// and samples around the 64 that are staged at a time, and infinities and NaN next to what is beyond an end.
#include <algorithm>

#include "checking.h"
#include "cuda/linear/sddmm_tensor_cores.cuh"
#include "cuda/linear/spmm_tensor_cores.cuh"

namespace sparseprune::cuda {
namespace {

constexpr int all_cols = 80;

// Rows of these lengths, of columns of chance. Column 0 is in few of them: what lies there must not reach others,
// although it is the address that copies of nothing are given.
struct Pattern {
  int rows;
  std::vector<int32_t> start{0}, index, order;

  explicit Pattern(const std::vector<int>& lengths) : rows(int(lengths.size())) {
    for (int i = 0; i < rows; ++i) {
      std::vector<int32_t> columns;
      for (int j = i % 3 == 2 ? 0 : 1; j < all_cols; ++j) columns.push_back(j);
      std::shuffle(columns.begin() + (i % 3 == 2), columns.end(), numbers);
      columns.resize(size_t(lengths[size_t(i)]));
      std::sort(columns.begin(), columns.end());
      index.insert(index.end(), columns.begin(), columns.end());
      start.push_back(int32_t(index.size()));
      order.push_back(i);
    }
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return lengths[size_t(a)] > lengths[size_t(b)]; });
  }
  int64_t nonzeros() const { return int64_t(index.size()); }
};

template <class T>
bool same_bits(const Buffer<T>& a, const Buffer<T>& b) {
  return memcmp(a.data(), b.data(), a.bytes()) == 0;
}

struct Case {
  int samples;
  bool ordered, biased, relu, special;
  int64_t parts, samples_of_part;
};

template <class T, int V>
struct Operands {
  const Pattern& p;
  Buffer<int32_t> start, index, order;
  Buffer<T> value, x, g, bias;
  Rows rows;

  Operands(const Pattern& pattern, const Case& c)
      : p(pattern),
        start(exactly(p.start)),
        index(exactly(p.index)),
        order(exactly(p.order)),
        value(Buffer<T>::random(p.nonzeros() * V)),
        x(Buffer<T>::random(int64_t(all_cols) * c.samples)),
        g(Buffer<T>::random(int64_t(p.rows) * V * c.samples)),
        bias(Buffer<T>::random(int64_t(p.rows) * V)),
        rows{start.data(), index.data(), c.ordered ? order.data() : nullptr, p.rows} {
    if (!c.special) return;
    const T infinity = T(std::numeric_limits<float>::infinity()), nan = T(std::nanf(""));
    for (int n = 0; n < c.samples; ++n) x[n] = n % 3 ? infinity : nan;  // all of column 0
    x[int64_t(all_cols / 2) * c.samples + c.samples / 2] = nan;
    // The first number of a row follows the last of the row before it, here and in g.
    if (p.rows > 3 && p.start[3] < p.start[4])
      for (int v = 0; v < V; v += 2) value[int64_t(p.start[3]) * V + v] = nan;
    g[(int64_t(p.rows - 1) * V + 1) * c.samples] = infinity;
    g[(int64_t(p.rows - 1) * V + 3) * c.samples + c.samples - 1] = nan;
  }
};

template <class T, int V>
void check_spmm(const Operands<T, V>& o, const Case& c) {
  const Pattern& p = o.p;
  const Buffer<T> y(int64_t(p.rows) * V * c.samples), again(y.size());
  for (const Buffer<T>* to : {&y, &again}) {
    launch_spmm<T, V>(o.rows, o.value.data(), o.x.data(), c.samples, c.biased ? o.bias.data() : nullptr, c.relu,
                      to->data(), nullptr);
    if (brief) break;
  }
  if (!brief && !same_bits(y, again)) fail("SpMM gives other bits in another order of threads");
  for (int i = 0; i < p.rows; ++i)
    for (int v = 0; v < V; ++v)
      for (int n = 0; n < c.samples; ++n) {
        double sum = c.biased ? double(float(o.bias[i * V + v])) : 0, scale = std::abs(sum);
        for (int32_t j = p.start[i]; j < p.start[i + 1]; ++j) {
          const double term =
              double(float(o.value[int64_t(j) * V + v])) * float(o.x[int64_t(p.index[j]) * c.samples + n]);
          sum += term;
          scale += std::abs(term);
        }
        if (c.relu && sum < 0) sum = 0;
        const int64_t at = (int64_t(i) * V + v) * c.samples + n;
        expect_sum<T>(float(y[at]), sum, scale, p.start[i + 1] - p.start[i], at, 2);
      }
}

// Each part by itself too: what is beyond its end must not be in it.
template <class T, int V>
void check_sddmm(const Operands<T, V>& o, const Case& c) {
  const Pattern& p = o.p;
  const Parts parts{c.parts, c.samples_of_part};
  const Buffer<float> sums(c.parts * p.nonzeros() * V);
  const Buffer<T> d_value(p.nonzeros() * V), again(p.nonzeros() * V);
  for (const Buffer<T>* to : {&d_value, &again}) {
    launch_sddmm<T, V>(o.rows, p.nonzeros(), o.g.data(), o.x.data(), c.samples, parts, sums.data(), to->data(),
                       nullptr);
    if (brief) break;
  }
  if (!brief && !same_bits(d_value, again)) fail("SDDMM gives other bits in another order of threads");
  for (int i = 0; i < p.rows; ++i)
    for (int32_t j = p.start[i]; j < p.start[i + 1]; ++j)
      for (int v = 0; v < V; ++v) {
        double all = 0, scale_of_all = 0;
        const int64_t at = int64_t(j) * V + v;
        for (int64_t part = 0; part < c.parts; ++part) {
          double sum = 0, scale = 0;
          const int64_t first = part * c.samples_of_part;
          for (int64_t n = first; n < std::min<int64_t>(first + c.samples_of_part, c.samples); ++n) {
            const double term = double(float(o.g[(int64_t(i) * V + v) * c.samples + n])) *
                                float(o.x[int64_t(p.index[j]) * c.samples + n]);
            sum += term;
            scale += std::abs(term);
          }
          const int64_t of_part = part * p.nonzeros() * V + at;
          expect_sum<float>(sums[of_part], sum, scale, c.samples_of_part, of_part, 2);
          all += sum;
          scale_of_all += scale;
        }
        expect_sum<T>(float(d_value[at]), all, scale_of_all, c.samples + c.parts, at, 2);
      }
}

template <class T, int V>
void check(const char* type, const std::vector<int>& lengths, const Case& c) {
  char text[200];
  snprintf(text, sizeof text, "%s V=%d, %zu block rows, %d samples in %d parts%s%s%s%s", type, V, lengths.size(),
           c.samples, int(c.parts), c.ordered ? ", ordered" : "", c.biased ? ", bias" : "", c.relu ? ", relu" : "",
           c.special ? ", inf and nan" : "");
  current = text;
  const Pattern p(lengths);
  const Operands<T, V> o(p, c);
  if (!chunks_fit(c.samples, o.x.data(), o.value.data(), o.g.data())) fail("not for tensor cores");
  check_spmm<T, V>(o, c);
  check_sddmm<T, V>(o, c);
}

template <class T, int V>
void shapes(const char* type) {
  static_assert(for_tensor_cores<T, V>);
  // 66: more than the 64 nonzeros that the warps of a block of threads take at a time. 128: more samples than are
  // staged at a time, twice over, so that what was staged is overwritten.
  if (brief) return check<T, V>(type, {0, 33, 66, 1, 17}, {136, true, true, true, false, 2, 128});
  int turn = V / 8;
  for (const int samples : {8, 16, 40, 64, 72, 136}) {
    const bool a = turn & 1, b = turn & 2, c = turn & 4;
    check<T, V>(type, {0, 1, 15, 16, 17, 33, 2}, {samples, a, b, c, false, 1, 192});
    check<T, V>(type, {16, 0, 5, 32, 18}, {samples, b, c, a, true, 3, 64});  // the last parts may be empty
    ++turn;
  }
  check<T, V>(type, {66, 80 - 1, 0}, {72, true, true, false, true, 2, 64});
  check<T, V>(type, {3, 20}, {136, false, false, false, true, 4, 40});  // parts that end within what is staged
  check<T, V>(type, {0}, {64, false, true, true, false, 1, 64});
  check<T, V>(type, {31}, {8, false, false, false, false, 1, 64});
}

void predicates() {
  current = "chunks_fit";
  alignas(16) char memory[64];
  for (int wrong = -1; wrong < 3; ++wrong) {
    const void* at[3];
    for (int i = 0; i < 3; ++i) at[i] = memory + (i == wrong ? 2 : 16 * i);
    for (const int samples : {0, 1, 4, 8, 12, 15, 16, 17})
      if (chunks_fit(samples, at[0], at[1], at[2]) != (wrong < 0 && samples % 8 == 0)) fail("is wrong");
  }
  static_assert(!for_tensor_cores<float, 8> && !for_tensor_cores<float, 16> && !for_tensor_cores<Half, 4> &&
                !for_tensor_cores<BFloat16, 1>);
}

// Operands that lie where 16 bytes may not be loaded at once: the ordinary kernels take them.
void misaligned() {
  using T = Half;
  constexpr int V = 8, samples = 16;
  current = "misaligned operands";
  const Pattern p({3, 18});
  const auto start = exactly(p.start), index = exactly(p.index);
  const Rows rows{start.data(), index.data(), nullptr, p.rows};
  for (int wrong = 0; wrong < 3; ++wrong) {
    const auto value = Buffer<T>::random(p.nonzeros() * V + 1), x = Buffer<T>::random(all_cols * samples + 1),
               bias = Buffer<T>::random(p.rows * V);
    const Buffer<T> y(int64_t(p.rows) * V * samples + 1);
    const T *values = value.data() + (wrong == 0), *of_x = x.data() + (wrong == 1);
    T* to = y.data() + (wrong == 2);
    launch_spmm<T, V>(rows, values, of_x, samples, bias.data(), false, to, nullptr);
    for (int i = 0; i < p.rows; ++i)
      for (int v = 0; v < V; ++v)
        for (int n = 0; n < samples; ++n) {
          double sum = float(bias[i * V + v]), scale = std::abs(sum);
          for (int32_t j = p.start[i]; j < p.start[i + 1]; ++j) {
            const double term = double(float(values[int64_t(j) * V + v])) * float(of_x[p.index[j] * samples + n]);
            sum += term;
            scale += std::abs(term);
          }
          const int64_t at = (int64_t(i) * V + v) * samples + n;
          expect_sum<T>(float(to[at]), sum, scale, rows.start[i + 1] - rows.start[i], at, 2);
        }
  }
}

void run() {
  predicates();
  if (!brief) misaligned();
  shapes<Half, 16>("float16");
  shapes<BFloat16, 8>("bfloat16");
  shapes<Half, 8>("float16");
  shapes<BFloat16, 16>("bfloat16");
}

}  // namespace
}  // namespace sparseprune::cuda

int main(int argc, char** argv) { return sparseprune::cuda::main_of_test(argc, argv, sparseprune::cuda::run); }
