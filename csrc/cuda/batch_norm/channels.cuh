// How the channels of images are divided among threads, and how these load, store and sum a channel's numbers.
//
// A block of threads takes a part of a channel. Its sums go to a workspace, where a second kernel adds up those of
// a channel in order: no atomics, the same bits every time.
#pragma once
#include <stdexcept>
#include <string>
#include <type_traits>

#include "cuda/device.cuh"

namespace sparseprune::cuda {

constexpr int norm_threads = 128, norm_warps = norm_threads / warp_size;
// Blocks of threads for which a multiprocessor has registers: named, since nvcc spills a few to fit more
// otherwise.
constexpr int norm_blocks = 6;
// Numbers of a channel that a block of threads takes: each thread can keep its own in registers.
constexpr int norm_part = 32 * norm_threads;
// Vectors of N numbers that a thread asks for before it waits for the first.
template <int N>
constexpr int norm_batch = N == 1 ? 8 : 16 / N;

// Where a channel's numbers are: `pieces` runs of `piece` numbers. All images of a call have the same layout.
struct Channels {
  int32_t channels;
  int64_t channel_stride, pieces, piece, piece_stride;

  __host__ __device__ int64_t numbers() const { return pieces * piece; }
  __host__ __device__ int64_t parts() const { return divided_up(numbers(), norm_part); }
  // Number k of a channel. There are less than 2^31: a division of 32 bits takes a fraction of the time of one
  // of 64.
  __device__ __forceinline__ int64_t at(int32_t channel, uint32_t k) const {
    const uint32_t p = k / uint32_t(piece);
    return channel * channel_stride + p * piece_stride + (k - p * uint32_t(piece));
  }
};

// Numbers `begin` .. `end` - 1 of a channel: what the calling block of threads takes.
struct NormPart {
  int32_t channel;
  uint32_t begin, end;
};

__device__ __forceinline__ NormPart part_of_block(const Channels& of) {
  const uint32_t parts = uint32_t(of.parts()), numbers = uint32_t(of.numbers());
  const uint32_t begin = blockIdx.x % parts * norm_part;
  return {int32_t(blockIdx.x / parts), begin, numbers - begin < norm_part ? numbers : begin + norm_part};
}

// Where the calling thread's vectors of N numbers are: number k of the channel, and the next ones of its batch.
// Those beyond the part are replaced by the last in it, so that no branch comes between loads.
template <int N, int B>
__device__ __forceinline__ void places_of_vectors(const Channels& of, const NormPart& part, uint32_t k,
                                                  int64_t (&at)[B]) {
#pragma unroll
  for (int b = 0; b < B; ++b, k += norm_threads * N) at[b] = of.at(part.channel, k < part.end ? k : part.end - N);
}

template <class T, int N, int B>
__device__ __forceinline__ void load_batch(const T* from, const int64_t (&at)[B], float (&to)[B][N]) {
#pragma unroll
  for (int b = 0; b < B; ++b) load<T, N>(from + at[b], to[b]);
}

// Without those vectors that are not in the part.
template <class T, int N, int B>
__device__ __forceinline__ void store_batch(const float (&from)[B][N], const NormPart& part, uint32_t k,
                                            const int64_t (&at)[B], T* to) {
#pragma unroll
  for (int b = 0; b < B; ++b, k += norm_threads * N)
    if (k < part.end) store<T, N>(from[b], to + at[b]);
}

// The sum over the calling block; every thread gets it. `of_warp` is for this sum only.
__device__ __forceinline__ float sum_of_block(float value, float (&of_warp)[norm_warps]) {
  value = sum_of_group<warp_size>(value, lanes_of_group<warp_size>());
  if (threadIdx.x % warp_size == 0) of_warp[threadIdx.x / warp_size] = value;
  __syncthreads();
  float sum = 0;
#pragma unroll
  for (int w = 0; w < norm_warps; ++w) sum += of_warp[w];
  return sum;
}

__device__ __forceinline__ double sum_of_warp(double value) {
#pragma unroll
  for (int by = warp_size / 2; by > 0; by /= 2) value += __shfl_xor_sync(0xffffffffu, value, by);
  return value;
}

// The channel of the calling warp, which may be one beyond the last.
__device__ __forceinline__ int64_t channel_of_warp() {
  return int64_t(blockIdx.x) * norm_warps + threadIdx.x / warp_size;
}

// ---- launching ----

// A block for each part of each channel.
inline dim3 blocks_of_parts(const Channels& of) {
  if (of.numbers() > INT32_MAX)
    throw std::invalid_argument("expected at most 2^31 - 1 numbers of a channel, got " +
                                std::to_string(of.numbers()) + "; use smaller batches");
  return grid_of(of.channels * of.parts());
}
inline dim3 blocks_of_channels(const Channels& of) { return grid_of(divided_up(of.channels, norm_warps)); }

// Calls run(numbers a thread loads at once): 16 bytes where each of these tensors may be read so.
template <class T, class Run, class... Tensors>
void for_vectors(const Channels& of, Run run, const Tensors*... tensors) {
  constexpr int vector = 16 / int(sizeof(T));
  const bool whole = of.piece % vector == 0 && of.channel_stride % vector == 0 && of.piece_stride % vector == 0;
  if (whole && ((reinterpret_cast<uintptr_t>(tensors) % 16 == 0) && ...))
    run(std::integral_constant<int, vector>{});
  else
    run(std::integral_constant<int, 1>{});
}

}  // namespace sparseprune::cuda
