// The kernels of linear layers on the CPU (simt.h) against double precision, over awkward shapes.
#include <algorithm>

#include "checking.h"
#include "cuda/linear/sddmm_tensor_cores.cuh"
#include "cuda/linear/spmm_tensor_cores.cuh"

namespace sparseprune::cuda {
namespace {

// A pattern by rows, and by columns as the transposed kernels want it. Row 0 is empty, row 1 holds one nonzero
// where there are so many rows.
struct Pattern {
  int rows, cols;
  std::vector<int32_t> start{0}, index, order;
  std::vector<int32_t> start_t, index_t, source_t;

  Pattern(int r, int c, double density) : rows(r), cols(c) {
    for (int i = 0; i < rows; ++i) {
      for (int j = 0; j < cols; ++j)
        if (rows > 2 && i < 2 ? i == 1 && j == cols / 2 : uniform() < 2 * density - 1) index.push_back(j);
      start.push_back(int32_t(index.size()));
    }
    for (int i = 0; i < rows; ++i) order.push_back(i);
    std::stable_sort(order.begin(), order.end(),
                     [&](int a, int b) { return start[a + 1] - start[a] > start[b + 1] - start[b]; });
    start_t.assign(1, 0);
    for (int j = 0; j < cols; ++j) {
      for (int i = 0; i < rows; ++i)
        for (int32_t k = start[i]; k < start[i + 1]; ++k)
          if (index[k] == j) index_t.push_back(i), source_t.push_back(k);
      start_t.push_back(int32_t(index_t.size()));
    }
  }
  int64_t nonzeros() const { return int64_t(index.size()); }
};

template <class T, int V>
void linear(const char* type, int rows, int cols, int samples, double density, bool special) {
  char text[160];
  snprintf(text, sizeof text, "%s V=%d %dx%d blocks, %d samples, density %g%s", type, V, rows, cols, samples,
           density, special ? ", with inf and nan" : "");
  current = text;
  const Pattern p(rows, cols, density);
  const auto start = exactly(p.start), index = exactly(p.index), order = exactly(p.order);
  const auto start_t = exactly(p.start_t), index_t = exactly(p.index_t), source_t = exactly(p.source_t);
  const auto value = Buffer<T>::random(p.nonzeros() * V), x = Buffer<T>::random(int64_t(cols) * samples),
             g = Buffer<T>::random(int64_t(rows) * V * samples), bias = Buffer<T>::random(int64_t(rows) * V);
  if (special && x.size() > 1) {
    x[x.size() / 2] = T(std::numeric_limits<float>::infinity());
    x[x.size() - 1] = T(std::numeric_limits<float>::quiet_NaN());
  }
  const int turn = checks % 4;  // with and without order, bias, ReLU
  const Rows by_rows{start.data(), index.data(), turn % 2 ? order.data() : nullptr, rows};
  const Rows by_columns{start_t.data(), index_t.data(), nullptr, cols};

  const Buffer<T> y(int64_t(rows) * V * samples);
  const bool relu = turn >= 2;
  launch_spmm<T, V>(by_rows, value.data(), x.data(), samples, turn == 1 ? nullptr : bias.data(), relu, y.data(),
                    nullptr);
  for (int i = 0; i < rows; ++i)
    for (int v = 0; v < V; ++v)
      for (int n = 0; n < samples; ++n) {
        double sum = turn == 1 ? 0 : double(float(bias[i * V + v])), scale = std::abs(sum);
        for (int32_t j = p.start[i]; j < p.start[i + 1]; ++j) {
          const double term =
              double(float(value[int64_t(j) * V + v])) * float(x[int64_t(p.index[j]) * samples + n]);
          sum += term;
          scale += std::abs(term);
        }
        if (relu && sum < 0) sum = 0;
        const int64_t at = (int64_t(i) * V + v) * samples + n;
        expect_sum<T>(float(y[at]), sum, scale, p.start[i + 1] - p.start[i], at);
      }

  const Buffer<T> d_x(int64_t(cols) * samples);
  launch_spmm_t<T, V>(by_columns, source_t.data(), value.data(), g.data(), samples, d_x.data(), nullptr);
  for (int c = 0; c < cols; ++c)
    for (int n = 0; n < samples; ++n) {
      double sum = 0, scale = 0;
      for (int32_t j = p.start_t[c]; j < p.start_t[c + 1]; ++j)
        for (int v = 0; v < V; ++v) {
          const double term = double(float(value[int64_t(p.source_t[j]) * V + v])) *
                              float(g[(int64_t(p.index_t[j]) * V + v) * samples + n]);
          sum += term;
          scale += std::abs(term);
        }
      const int64_t at = int64_t(c) * samples + n;
      expect_sum<T>(float(d_x[at]), sum, scale, int64_t(p.start_t[c + 1] - p.start_t[c]) * V, at);
    }

  const Buffer<T> d_value(p.nonzeros() * V);
  const Parts parts = samples > 2048 ? Parts{3, 1408} : parts_of(samples, rows);
  const Buffer<float> workspace(parts.count * p.nonzeros() * V);
  launch_sddmm<T, V>(by_rows, p.nonzeros(), g.data(), x.data(), samples, parts, workspace.data(), d_value.data(),
                     nullptr);
  for (int i = 0; i < rows; ++i)
    for (int32_t j = p.start[i]; j < p.start[i + 1]; ++j)
      for (int v = 0; v < V; ++v) {
        double sum = 0, scale = 0;
        for (int n = 0; n < samples; ++n) {
          const double term =
              double(float(g[(int64_t(i) * V + v) * samples + n])) * float(x[int64_t(p.index[j]) * samples + n]);
          sum += term;
          scale += std::abs(term);
        }
        const int64_t at = int64_t(j) * V + v;
        expect_sum<T>(float(d_value[at]), sum, scale, samples, at);
      }
}

template <class T, int V>
void linear_shapes(const char* type) {
  if (brief) {
    linear<T, V>(type, 5, 41, 33, 0.9, false);
    linear<T, V>(type, 4, 40, 72, 0.9, false);
    return;
  }
  for (const int samples : {0, 1, 3, 8, 12, 16, 33, 72, 136}) {
    linear<T, V>(type, 3, 5, samples, 0.5, false);
    linear<T, V>(type, 7, 41, samples, 0.9, false);
  }
  linear<T, V>(type, 1, 1, 4, 1.1, false);
  linear<T, V>(type, 4, 9, 64, 0.0, false);
  linear<T, V>(type, 5, 70, 64, 0.6, true);
  linear<T, V>(type, 3, 6, 17, 0.6, true);
  if (V == 1) linear<T, V>(type, 3, 4, 4099, 0.5, false), linear<T, V>(type, 3, 4, 4160, 0.5, false);
}

template <class T>
void linear_blocks(const char* type) {
  linear_shapes<T, 1>(type);
  if (!brief) linear_shapes<T, 2>(type);
  linear_shapes<T, 4>(type);
  if (!brief) linear_shapes<T, 8>(type);
  linear_shapes<T, 16>(type);
}

void run() {
  linear_blocks<float>("float32");
  if (brief) return;
  linear_blocks<Half>("float16");
  linear_blocks<BFloat16>("bfloat16");
}

}  // namespace
}  // namespace sparseprune::cuda

int main(int argc, char** argv) { return sparseprune::cuda::main_of_test(argc, argv, sparseprune::cuda::run); }
