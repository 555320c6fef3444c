// SDDMM on tensor cores, for blocks of 8 and 16 rows of half precision, summed in float32.
//
// A block of threads takes a block row and a part of the samples, a warp 16 of its nonzeros at a time: 16 rows of
// x times the V rows of g, 16 samples an instruction. Both are copied to shared memory while the samples before
// them are multiplied. As in sddmm.cuh, parts are added up by a second kernel.
#pragma once
#include "cuda/linear/sddmm.cuh"
#include "cuda/linear/tensor_cores.cuh"

namespace sparseprune::cuda {

constexpr int sddmm_tile = 32;                     // samples staged at a time
constexpr int sddmm_tile_stride = sddmm_tile + 8;  // in shared memory: 8 rows lie in different banks

// Shared memory: 20 KB for V = 16, 15 KB for V = 8.
template <class T, int V>
__global__ void __launch_bounds__(mma_threads)
    sddmm_tensor_cores_kernel(Rows rows, const T* g, const T* x, int64_t samples, int64_t samples_of_part,
                              int64_t nonzeros, float* sum) {
  constexpr unsigned all = 0xffffffffu;
  constexpr int columns = V / 8, chunks_of_row = sddmm_tile / mma_chunk, rows_at_once = warp_size / chunks_of_row;
  constexpr int x_numbers = 16 * sddmm_tile_stride, g_numbers = V * sddmm_tile_stride;
  using Chunk = Words<16>;
  SHARED_ARRAY(Chunk, x_chunks, mma_warps * 2 * x_numbers / mma_chunk);
  SHARED_ARRAY(Chunk, g_chunks, mma_warps * 2 * g_numbers / mma_chunk);
  const int warp = int(threadIdx.x) / warp_size, lane = int(threadIdx.x) % warp_size;
  T* const staged_x = reinterpret_cast<T*>(&x_chunks[warp * 2 * x_numbers / mma_chunk]);
  T* const staged_g = reinterpret_cast<T*>(&g_chunks[warp * 2 * g_numbers / mma_chunk]);

  const unsigned part = blockIdx.x / unsigned(rows.count), place = blockIdx.x % unsigned(rows.count);
  const int32_t row = rows.order ? rows.order[place] : int32_t(place);
  const int64_t first = int64_t(part) * samples_of_part;
  const int64_t last = first + samples_of_part < samples ? first + samples_of_part : samples;
  const int steps = last > first ? int(divided_up(last - first, sddmm_tile)) : 0;
  const T* rows_of_g = g + int64_t(row) * V * samples;
  const int32_t end = rows.start[row + 1];

  for (int32_t begin = rows.start[row] + warp * 16; begin < end; begin += mma_warps * 16) {
    const int32_t left = end - begin;  // nonzeros from here on
    const int32_t index = lane < 16 && lane < left ? rows.index[begin + lane] : 0;
    const auto stage = [&](int step) {
      const int64_t sample = first + int64_t(step) * sddmm_tile + lane % chunks_of_row * mma_chunk;
      const int at = lane % chunks_of_row * mma_chunk;
#pragma unroll
      for (int i = 0; i < 16 / rows_at_once; ++i) {
        const int j = i * rows_at_once + lane / chunks_of_row;
        const int64_t from = int64_t(__shfl_sync(all, index, j)) * samples + sample;
        const bool there = j < left && sample < last;
        copy_later(staged_x + step % 2 * x_numbers + j * sddmm_tile_stride + at, there ? x + from : x, there);
      }
#pragma unroll
      for (int i = 0; i < V / rows_at_once; ++i) {
        const int v = i * rows_at_once + lane / chunks_of_row;
        copy_later(staged_g + step % 2 * g_numbers + v * sddmm_tile_stride + at,
                   sample < last ? rows_of_g + v * samples + sample : g, sample < last);
      }
    };
    float total[columns][4] = {};
    __syncwarp();  // all have read what was staged for the nonzeros before
    if (steps > 0) stage(0);
    commit_copies();
    for (int step = 0; step < steps; ++step) {
      if (step + 1 < steps) stage(step + 1);
      commit_copies();
      wait_for_copies<1>();
      __syncwarp();  // those of all lanes are there
#pragma unroll
      for (int k = 0; k < sddmm_tile; k += mma_depth) {
        uint32_t of_x[4];
        load_matrices<false>(
            of_x, staged_x + step % 2 * x_numbers + lane % 16 * sddmm_tile_stride + k + lane / 16 * mma_chunk);
#pragma unroll
        for (int q = 0; q < columns; ++q) {
          uint32_t of_g[2];
          load_matrices<false>(of_g, staged_g + step % 2 * g_numbers + (q * 8 + lane % 8) * sddmm_tile_stride + k +
                                         lane / 8 % 2 * mma_chunk);
          multiply_add<T>(total[q], of_x, of_g);
        }
      }
      __syncwarp();  // all have read what is overwritten next
    }
    wait_for_copies<0>();
#pragma unroll
    for (int q = 0; q < columns; ++q)
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int j = lane / 4 + i / 2 * 8;
        if (j < left) sum[(int64_t(part) * nonzeros + begin + j) * V + q * 8 + lane % 4 * 2 + i % 2] = total[q][i];
      }
  }
}

// ---- launching ----

// On tensor cores where the numbers and their places in memory allow it. workspace: parts.count x nonzeros x V
// numbers
template <class T, int V>
void launch_sddmm(const Rows& rows, int64_t nonzeros, const T* g, const T* x, int64_t samples, const Parts& parts,
                  float* workspace, T* d_value, cudaStream_t stream) {
  if (nonzeros == 0) return;
  if constexpr (for_tensor_cores<T, V>)
    if (chunks_fit(samples, x, g, g)) {
      launch(sddmm_tensor_cores_kernel<T, V>, grid_of(rows.count * parts.count), dim3(mma_threads), stream, rows,
             g, x, samples, parts.numbers, nonzeros, workspace);
      return sum_parts(workspace, parts, nonzeros * V, d_value, stream);
    }
  launch_sddmm_on_cuda_cores<T, V>(rows, nonzeros, g, x, samples, parts, workspace, d_value, stream);
}

}  // namespace sparseprune::cuda
