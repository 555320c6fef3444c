// SpMM on tensor cores, for blocks of 8 and 16 rows of half precision, summed in float32.
//
// A warp computes one block row for 64 samples: y^T = x^T W^T, 16 samples x 8 rows x 16 nonzeros an instruction,
// so that blocks of 8 rows are whole, and blocks of 16 share what was loaded of x. The rows of x that 16 nonzeros
// pick are copied to shared memory while the 16 before them are multiplied. What is beyond the row's end is zero
// in both operands: a zero times what happens to be there could be NaN.
#pragma once
#include "cuda/linear/spmm.cuh"
#include "cuda/linear/tensor_cores.cuh"

namespace sparseprune::cuda {

constexpr int spmm_tile = 64;                      // samples of a warp
constexpr int spmm_tile_stride = spmm_tile + 8;    // in shared memory: 8 rows lie in different banks
constexpr int spmm_result_stride = spmm_tile + 4;  // likewise, of float32
template <int V>
constexpr int spmm_value_stride = V == 8 ? 8 : 24;

// Shared memory: 24 KB for V = 16, 20 KB for V = 8.
template <class T, int V>
__global__ void __launch_bounds__(mma_threads)
    spmm_tensor_cores_kernel(Rows rows, const T* value, const T* x, int64_t samples, const T* bias, bool relu,
                             T* y) {
  constexpr unsigned all = 0xffffffffu;
  constexpr int columns = V / 8, chunks_of_row = spmm_tile / mma_chunk;
  constexpr int x_numbers = mma_depth * spmm_tile_stride, value_numbers = mma_depth * spmm_value_stride<V>;
  using Chunk = Words<16>;
  SHARED_ARRAY(Chunk, x_chunks, mma_warps * 2 * x_numbers / mma_chunk);
  SHARED_ARRAY(Chunk, value_chunks, mma_warps * 2 * value_numbers / mma_chunk);
  static_assert(V * spmm_result_stride * 4 <= 2 * x_numbers * 2, "results take the place of what was staged");
  const int warp = int(threadIdx.x) / warp_size, lane = int(threadIdx.x) % warp_size;
  T* const staged_x = reinterpret_cast<T*>(&x_chunks[warp * 2 * x_numbers / mma_chunk]);
  T* const staged_value = reinterpret_cast<T*>(&value_chunks[warp * 2 * value_numbers / mma_chunk]);

  const unsigned row_blocks = unsigned(divided_up(rows.count, mma_warps));
  const int64_t place = int64_t(blockIdx.x % row_blocks) * mma_warps + warp;
  if (place >= rows.count) return;  // the whole warp: others do not wait for it
  const int32_t row = rows.order ? rows.order[place] : int32_t(place);
  const int64_t first = int64_t(blockIdx.x / row_blocks) * spmm_tile;
  const int32_t begin = rows.start[row], end = rows.start[row + 1];
  const int32_t steps = int32_t(divided_up(end - begin, mma_depth));

  // The index of nonzero `lane` of a step, which is loaded one step ahead.
  const auto index_of = [&](int32_t step) {
    const int32_t j = begin + step * mma_depth + lane;
    return lane < mma_depth && j < end ? rows.index[j] : 0;
  };
  const auto stage = [&](int32_t step, int32_t index) {
    const int32_t left = end - begin - step * mma_depth;  // nonzeros of this step and those after it
    T* const to_x = staged_x + step % 2 * x_numbers;
#pragma unroll
    for (int i = 0; i < mma_depth * chunks_of_row / warp_size; ++i) {
      const int j = (i * warp_size + lane) / chunks_of_row, part = lane % chunks_of_row * mma_chunk;
      const int64_t from = int64_t(__shfl_sync(all, index, j)) * samples + first + part;
      const bool there = j < left && first + part < samples;
      copy_later(to_x + j * spmm_tile_stride + part, there ? x + from : x, there);
    }
    const int j = lane / columns, part = lane % columns * mma_chunk;
    if (j < mma_depth) {
      const int64_t block = int64_t(begin) + step * mma_depth + j;
      copy_later(staged_value + step % 2 * value_numbers + j * spmm_value_stride<V> + part,
                 j < left ? value + block * V + part : value, j < left);
    }
  };

  float sum[spmm_tile / 16][columns][4] = {};
  int32_t index = index_of(0);
  if (steps > 0) stage(0, index);
  commit_copies();
  index = index_of(1);
  for (int32_t step = 0; step < steps; ++step) {
    if (step + 1 < steps) stage(step + 1, index);
    commit_copies();
    index = index_of(step + 2);
    wait_for_copies<1>();
    __syncwarp();  // those of all lanes are there
    uint32_t of_value[columns][2];
#pragma unroll
    for (int q = 0; q < columns; ++q)
      load_matrices<true>(of_value[q], staged_value + step % 2 * value_numbers +
                                           lane % mma_depth * spmm_value_stride<V> + q * mma_chunk);
#pragma unroll
    for (int m = 0; m < spmm_tile / 16; ++m) {
      uint32_t of_x[4];
      load_matrices<true>(of_x, staged_x + step % 2 * x_numbers + (lane / 16 * 8 + lane % 8) * spmm_tile_stride +
                                    m * 16 + lane / 8 % 2 * mma_chunk);
#pragma unroll
      for (int q = 0; q < columns; ++q) multiply_add<T>(sum[m][q], of_x, of_value[q]);
    }
    __syncwarp();  // all have read what is overwritten next
  }
  wait_for_copies<0>();
  __syncwarp();

  // Through shared memory, so that every lane writes 16 bytes of a row.
  float* const results = reinterpret_cast<float*>(staged_x);
#pragma unroll
  for (int m = 0; m < spmm_tile / 16; ++m)
#pragma unroll
    for (int q = 0; q < columns; ++q)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        results[(q * 8 + lane % 4 * 2 + i % 2) * spmm_result_stride + m * 16 + lane / 4 + i / 2 * 8] =
            sum[m][q][i];
  __syncwarp();
#pragma unroll
  for (int i = 0; i < V * chunks_of_row / warp_size; ++i) {
    const int v = (i * warp_size + lane) / chunks_of_row, part = lane % chunks_of_row * mma_chunk;
    if (first + part < samples) {
      const int64_t result = int64_t(row) * V + v;
      const float b = bias ? float(bias[result]) : 0.0f;
      float numbers[mma_chunk];
#pragma unroll
      for (int n = 0; n < mma_chunk; ++n) {
        numbers[n] = results[v * spmm_result_stride + part + n] + b;
        if (relu && numbers[n] < 0) numbers[n] = 0;  // NaN stays NaN
      }
      store<T, mma_chunk>(numbers, y + result * samples + first + part);
    }
  }
}

// ---- launching ----

// On tensor cores where the numbers and their places in memory allow it.
template <class T, int V>
void launch_spmm(const Rows& rows, const T* value, const T* x, int64_t samples, const T* bias, bool relu, T* y,
                 cudaStream_t stream) {
  if (rows.count == 0 || samples == 0) return;
  if constexpr (for_tensor_cores<T, V>)
    if (chunks_fit(samples, x, value, y)) {
      const int64_t blocks = divided_up(rows.count, mma_warps) * divided_up(samples, spmm_tile);
      return launch(spmm_tensor_cores_kernel<T, V>, grid_of(blocks), dim3(mma_threads), stream, rows, value, x,
                    samples, bias, relu, y);
    }
  launch_spmm_on_cuda_cores<T, V>(rows, value, x, samples, bias, relu, y, stream);
}

}  // namespace sparseprune::cuda
