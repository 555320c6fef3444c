// SpMM and its transpose, over dense operands [features, samples] with samples next to one another.
//
// 1-D tiles as in Sputnik (Gale, Zaharia, Young, Elsen, 2020): a group of L lanes computes V rows of the result
// for L x N numbers of samples. It brings 32 nonzeros at a time into shared memory, and reads a row of the dense
// operand for each of them with one vector load a lane. What is added to a result, and in which order, depends on
// the pattern alone.
#pragma once
#include "cuda/device.cuh"

namespace sparseprune::cuda {

constexpr int spmm_threads = 128;
// Blocks of threads for which a multiprocessor has registers: named, since nvcc spills a few to fit more
// otherwise.
constexpr int spmm_blocks = 4;
// Nonzeros in shared memory at a time, 18 KB at most for all groups of a block of threads.
template <int V>
constexpr int staged_nonzeros = V < 8    ? 32
                                : V == 8 ? 16
                                         : 8;
// Numbers a lane keeps of each row, loaded at once: 16 bytes, but at most 64 sums.
template <class T, int V>
constexpr int vector_numbers = V < 8 ? 16 / int(sizeof(T)) : 4;

// A pattern by rows: nonzeros of row r are start[r] .. start[r + 1]. `order`: rows by falling length, so that
// those of a block take about equally long; may be null.
struct Rows {
  const int32_t* start;
  const int32_t* index;
  const int32_t* order;
  int32_t count;
};

// Nonzeros begin .. begin + count - 1 of a row into a group's part of shared memory, V numbers each.
template <int V, int L, bool transposed, class T>
__device__ __forceinline__ void stage_values(const T* value, const int32_t* source, int32_t begin, int count,
                                             int lane, float* staged) {
  for (int j = lane; j < count * V; j += L) {
    const int64_t block = transposed ? source[begin + j / V] : begin + j / V;
    staged[j] = float(value[block * V + j % V]);
  }
}

// sum[v] += value[v] x, or, transposed, sum[0] += sum_v value[v] x_v, where the rows x_v are `stride` apart.
template <int V, bool transposed, int N, int results, class T>
__device__ __forceinline__ void add_products(const float* value, const T* x, int64_t stride,
                                             float (&sum)[results][N]) {
  float numbers[N];
#pragma unroll
  for (int v = 0; v < V; ++v) {
    if (transposed || v == 0) load<T, N>(x + v * stride, numbers);
    const float w = value[v];
#pragma unroll
    for (int n = 0; n < N; ++n) sum[transposed ? 0 : v][n] += w * numbers[n];
  }
}

// y[r V + v, n] = bias[r V + v] + sum_j value[j, v] x[index_j, n], and its maximum with 0 if relu.
//
// Transposed: rows are columns of the weight, nonzeros blocks of V rows of x, and source_j says which block of
// values is nonzero j:
//   y[r, n] = sum_jv value[source_j, v] x[index_j V + v, n]
template <class T, int V, int N, int L, bool transposed>
__global__ void __launch_bounds__(spmm_threads, spmm_blocks)
    spmm_kernel(Rows rows, const int32_t* source, const T* value, const T* x, int64_t samples, const T* bias,
                bool relu, T* y) {
  constexpr int groups = spmm_threads / L, staged = staged_nonzeros<V>, results = transposed ? 1 : V;
  SHARED_ARRAY(int32_t, indices, groups* staged);
  SHARED_ARRAY(float, values, groups * staged * V);
  const int group = int(threadIdx.x) / L, lane = int(threadIdx.x) % L;
  const unsigned lanes = lanes_of_group<L>();
  // Neighbours share the samples: what one of them has read of x, others find in the L2 cache.
  const unsigned row_blocks = unsigned(divided_up(rows.count, groups));
  const int64_t place = int64_t(blockIdx.x % row_blocks) * groups + group;
  if (place >= rows.count) return;  // the whole group: others do not wait for it
  const int32_t row = rows.order ? rows.order[place] : int32_t(place);
  const int64_t first = (int64_t(blockIdx.x / row_blocks) * L + lane) * N;
  const bool here = first < samples;

  float sum[results][N] = {};
  const int32_t end = rows.start[row + 1];
  for (int32_t begin = rows.start[row]; begin < end; begin += staged) {
    const int count = end - begin < staged ? end - begin : staged;
    __syncwarp(lanes);  // all have read what was staged before
    for (int j = lane; j < count; j += L) indices[group * staged + j] = rows.index[begin + j];
    stage_values<V, L, transposed>(value, source, begin, count, lane, &values[group * staged * V]);
    __syncwarp(lanes);
    if (here)
#pragma unroll 2
      for (int j = 0; j < count; ++j) {
        const T* rows_of_x = x + int64_t(indices[group * staged + j]) * (V / results) * samples + first;
        add_products<V, transposed>(&values[(group * staged + j) * V], rows_of_x, samples, sum);
      }
  }
  if (here)
#pragma unroll
    for (int v = 0; v < results; ++v) {
      const int64_t result = int64_t(row) * results + v;
      const float b = bias ? float(bias[result]) : 0.0f;
#pragma unroll
      for (int n = 0; n < N; ++n) {
        sum[v][n] += b;
        if (relu && sum[v][n] < 0) sum[v][n] = 0;  // NaN stays NaN
      }
      store<T, N>(sum[v], y + result * samples + first);
    }
}

// ---- launching ----

// Whether every row starts where `vector` numbers may be loaded at once.
template <class T>
bool vectors_fit(int vector, int64_t samples, const void* a, const void* b) {
  const auto aligned = [&](const void* p) {
    return reinterpret_cast<uintptr_t>(p) % (size_t(vector) * sizeof(T)) == 0;
  };
  return samples % vector == 0 && aligned(a) && aligned(b);
}

// Calls run(numbers a load, lanes of a group): wide tiles where there are samples enough to fill them.
template <class T, int V, class Run>
void for_tile(int64_t samples, const void* a, const void* b, Run run) {
  constexpr int vector = vector_numbers<T, V>;
  if (!vectors_fit<T>(vector, samples, a, b))
    samples > 8 ? run(std::integral_constant<int, 1>{}, std::integral_constant<int, 32>{})
                : run(std::integral_constant<int, 1>{}, std::integral_constant<int, 8>{});
  else
    samples > 8 * vector ? run(std::integral_constant<int, vector>{}, std::integral_constant<int, 16>{})
                         : run(std::integral_constant<int, vector>{}, std::integral_constant<int, 8>{});
}

template <class T, int V, bool transposed>
void run_spmm(const Rows& rows, const int32_t* source, const T* value, const T* x, int64_t samples, const T* bias,
              bool relu, T* y, cudaStream_t stream) {
  if (rows.count == 0 || samples == 0) return;
  for_tile<T, V>(samples, x, y, [&](auto n, auto l) {
    constexpr int N = n.value, L = l.value;
    const int64_t blocks = divided_up(rows.count, spmm_threads / L) * divided_up(samples, N * L);
    launch(spmm_kernel<T, V, N, L, transposed>, grid_of(blocks), dim3(spmm_threads), stream, rows, source, value,
           x, samples, bias, relu, y);
  });
}

template <class T, int V>
void launch_spmm_on_cuda_cores(const Rows& rows, const T* value, const T* x, int64_t samples, const T* bias,
                               bool relu, T* y, cudaStream_t stream) {
  run_spmm<T, V, false>(rows, nullptr, value, x, samples, bias, relu, y, stream);
}

template <class T, int V>
void launch_spmm_t(const Rows& rows, const int32_t* source, const T* value, const T* g, int64_t samples, T* d_x,
                   cudaStream_t stream) {
  run_spmm<T, V, true>(rows, source, value, g, samples, nullptr, false, d_x, stream);
}

}  // namespace sparseprune::cuda
