// SDDMM: the weight's gradient at its nonzeros.
//
// A group of 8 lanes takes one block of the pattern at a time: its lanes divide the samples, and add up what they
// have with shuffles. Long rows of samples are divided among blocks of threads as well, each with sums of its own
// that a second kernel adds up in order: no atomics, the same bits every time.
#pragma once
#include "cuda/linear/spmm.cuh"

namespace sparseprune::cuda {

constexpr int sddmm_threads = 128, sddmm_lanes = 8;
constexpr int sddmm_blocks = 4;  // as spmm_blocks

// sum[part, j, v] = sum over the samples of a part of g[r V + v, n] x[index_j, n], for the nonzeros j of row r.
// A block for each row and part.
template <class T, int V, int N>
__global__ void __launch_bounds__(sddmm_threads, sddmm_blocks)
    sddmm_kernel(Rows rows, const T* g, const T* x, int64_t samples, int64_t samples_of_part, int64_t nonzeros,
                 float* sum) {
  [[maybe_unused]] constexpr int unrolled = V <= 4 ? 2 : 1;  // nvcc would take more, and spill
  const int group = int(threadIdx.x) / sddmm_lanes, lane = int(threadIdx.x) % sddmm_lanes;
  const unsigned lanes = lanes_of_group<sddmm_lanes>();
  const unsigned part = blockIdx.x / unsigned(rows.count), place = blockIdx.x % unsigned(rows.count);
  const int32_t row = rows.order ? rows.order[place] : int32_t(place);
  const int64_t begin = int64_t(part) * samples_of_part;
  const int64_t end = begin + samples_of_part < samples ? begin + samples_of_part : samples;
  const T* rows_of_g = g + int64_t(row) * V * samples;
  for (int32_t j = rows.start[row] + group; j < rows.start[row + 1]; j += sddmm_threads / sddmm_lanes) {
    const T* row_of_x = x + int64_t(rows.index[j]) * samples;
    float total[V] = {};
#pragma unroll unrolled
    for (int64_t n = begin + lane * N; n < end; n += sddmm_lanes * N) {
      float of_x[N];
      load<T, N>(row_of_x + n, of_x);
#pragma unroll
      for (int v = 0; v < V; ++v) {
        float of_g[N];
        load<T, N>(rows_of_g + v * samples + n, of_g);
#pragma unroll
        for (int i = 0; i < N; ++i) total[v] += of_g[i] * of_x[i];
      }
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float all = sum_of_group<sddmm_lanes>(total[v], lanes);
      if (lane == 0) sum[(int64_t(part) * nonzeros + j) * V + v] = all;
    }
  }
}

// d_value[k] = sum over the parts
template <class T>
__global__ void __launch_bounds__(sddmm_threads)
    sum_of_parts_kernel(const float* sum, int parts, int64_t numbers, T* d_value) {
  const int64_t k = int64_t(blockIdx.x) * sddmm_threads + threadIdx.x;
  if (k >= numbers) return;
  float total = 0;
  for (int part = 0; part < parts; ++part) total += sum[part * numbers + k];
  d_value[k] = T(total);
}

// ---- launching ----

// Parts of the samples, so many that there are blocks of threads enough, but none of few numbers.
struct Parts {
  int64_t count, numbers;
};
inline Parts parts_of(int64_t numbers, int64_t rows) {
  constexpr int64_t enough_blocks = 1024, fewest_numbers = 2048, multiple = 64;
  int64_t count = divided_up(enough_blocks, rows > 0 ? rows : 1);
  if (count > divided_up(numbers, fewest_numbers)) count = divided_up(numbers, fewest_numbers);
  if (count < 1) count = 1;
  return {count, divided_up(divided_up(numbers, count), multiple) * multiple};
}

template <class T>
void sum_parts(const float* sums, const Parts& parts, int64_t numbers, T* d_value, cudaStream_t stream) {
  launch(sum_of_parts_kernel<T>, grid_of(divided_up(numbers, sddmm_threads)), dim3(sddmm_threads), stream, sums,
         int(parts.count), numbers, d_value);
}

// workspace: parts.count x nonzeros x V numbers
template <class T, int V>
void launch_sddmm_on_cuda_cores(const Rows& rows, int64_t nonzeros, const T* g, const T* x, int64_t samples,
                                const Parts& parts, float* workspace, T* d_value, cudaStream_t stream) {
  if (nonzeros == 0) return;
  constexpr int vector = vector_numbers<T, V>;
  const auto kernel = vectors_fit<T>(vector, samples, g, x) ? sddmm_kernel<T, V, vector> : sddmm_kernel<T, V, 1>;
  launch(kernel, grid_of(rows.count * parts.count), dim3(sddmm_threads), stream, rows, g, x, samples,
         parts.numbers, nonzeros, workspace);
  sum_parts(workspace, parts, nonzeros * V, d_value, stream);
}

}  // namespace sparseprune::cuda
