// topk_masks: the k largest numbers of a list of tensors, exactly k, ties to the earlier position; the same masks
// as the CPU's (cpu/topk.cpp).
//
// A radix select, which sorts nothing: keys are integers in the order of the numbers; passes each count the next 8
// bits of those keys that may still be the k-th largest, and choose these bits. Then everything above
// that key is kept, and as many of those equal to it as are wanting, by position: a count for each tile, a scan
// over them, and a rank within the tile. Counts are integers, so the order in which threads add them up does not
// matter.
#pragma once
#include "cuda/device.cuh"

namespace sparseprune::cuda {

constexpr int topk_threads = 256, topk_digits = 256, topk_tile = 1024;
constexpr int topk_warps = topk_threads / warp_size;

// What passes hand on, in device memory; zero at first.
struct Selection {
  unsigned long long count[topk_digits];  // of the keys of this pass, by digit
  unsigned long long key;                 // of the k-th largest, its higher bits so far
  unsigned long long wanted;              // this many of the keys that begin like `key`
  int32_t bad;                            // not 0: of a tensor with a number that is not finite; see bad_code
};

// Sign and magnitude to an unsigned integer: key(a) < key(b) exactly when a < b; both zeros are equal.
__device__ __forceinline__ uint32_t key_of(float number) {
  int32_t bits;
  memcpy(&bits, &number, sizeof bits);
  const int32_t sign = bits >> 31, magnitude = bits & 0x7fffffff;
  return uint32_t((magnitude ^ sign) - sign) ^ 0x80000000u;
}
__device__ __forceinline__ uint64_t key_of(double number) {
  int64_t bits;
  memcpy(&bits, &number, sizeof bits);
  const int64_t sign = bits >> 63, magnitude = bits & 0x7fffffffffffffff;
  return uint64_t((magnitude ^ sign) - sign) ^ 0x8000000000000000u;
}
template <class T>
using Key = decltype(key_of(T()));

template <class T>
__device__ __forceinline__ bool is_finite(T number) {
  return number - number == 0;
}

// Of the bad numbers, the first tensor's count, and among those a NaN: the largest code.
__host__ __device__ constexpr int32_t bad_code(int tensors_after, bool is_nan) {
  return 2 * tensors_after + 1 + is_nan;
}

// Adds to selection->count the digits at `shift` of those keys whose higher bits are selection->key's.
template <class T>
__global__ void __launch_bounds__(topk_threads)
    count_digits_kernel(const T* scores, int64_t n, int32_t tensors_after, int shift, Selection* selection) {
  SHARED_ARRAY(unsigned, count, topk_digits);
  for (int d = int(threadIdx.x); d < topk_digits; d += topk_threads) count[d] = 0;
  __syncthreads();
  const Key<T> key = Key<T>(selection->key);
  constexpr int bits = 8 * sizeof(T);
  const int higher = shift + 8;
  for (int64_t i = int64_t(blockIdx.x) * topk_threads + threadIdx.x; i < n;
       i += int64_t(gridDim.x) * topk_threads) {
    const T score = scores[i];
    if (!is_finite(score)) atomicMax(&selection->bad, bad_code(tensors_after, score != score));
    const Key<T> own = key_of(score);
    if (higher == bits || own >> higher == key >> higher) atomicAdd(&count[own >> shift & (topk_digits - 1)], 1u);
  }
  __syncthreads();
  for (int d = int(threadIdx.x); d < topk_digits; d += topk_threads)
    if (count[d]) atomicAdd(&selection->count[d], static_cast<unsigned long long>(count[d]));
}

// One thread: the digit of the k-th largest, and how many of those that share it are wanted.
static __global__ void choose_digit_kernel(int shift, bool first, unsigned long long k, Selection* selection) {
  unsigned long long wanted = first ? k : selection->wanted;
  int digit = topk_digits - 1;
  for (; digit > 0 && selection->count[digit] < wanted; --digit) wanted -= selection->count[digit];
  selection->key |= static_cast<unsigned long long>(digit) << shift;
  selection->wanted = wanted;
  for (int d = 0; d < topk_digits; ++d) selection->count[d] = 0;
}

// ties[tile] = numbers of the tile that equal the k-th largest
template <class T>
__global__ void __launch_bounds__(topk_threads)
    count_ties_kernel(const T* scores, int64_t n, const Selection* selection, int32_t* ties) {
  SHARED_ARRAY(int32_t, of_warp, topk_warps);
  const int lane = int(threadIdx.x) % warp_size, warp = int(threadIdx.x) / warp_size;
  int count = 0;
  for (int i = int(threadIdx.x); i < topk_tile; i += topk_threads) {
    const int64_t at = int64_t(blockIdx.x) * topk_tile + i;
    count += at < n && key_of(scores[at]) == Key<T>(selection->key);
  }
  for (int by = warp_size / 2; by > 0; by /= 2) count += __shfl_xor_sync(0xffffffffu, count, by);
  if (lane == 0) of_warp[warp] = count;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < topk_warps; ++w) count += of_warp[w];
    ties[blockIdx.x] = count;
  }
}

// before[tile] = ties of all tiles before it; one block
static __global__ void __launch_bounds__(topk_threads)
    scan_ties_kernel(const int32_t* ties, int64_t tiles, unsigned long long* before) {
  SHARED_ARRAY(unsigned long long, of_warp, topk_warps);
  SHARED_ARRAY(unsigned long long, carry, 1);
  const int lane = int(threadIdx.x) % warp_size, warp = int(threadIdx.x) / warp_size;
  if (threadIdx.x == 0) carry[0] = 0;
  for (int64_t first = 0; first < tiles; first += topk_threads) {
    const int64_t tile = first + threadIdx.x;
    const unsigned long long own = tile < tiles ? static_cast<unsigned long long>(ties[tile]) : 0;
    unsigned long long sum = own;  // of this warp, up to and with this thread
    for (int by = 1; by < warp_size; by *= 2) {
      const unsigned long long left = __shfl_up_sync(0xffffffffu, sum, unsigned(by));
      if (lane >= by) sum += left;
    }
    if (lane == warp_size - 1) of_warp[warp] = sum;
    __syncthreads();
    unsigned long long base = carry[0];
    for (int w = 0; w < warp; ++w) base += of_warp[w];
    if (tile < tiles) before[tile] = base + sum - own;
    __syncthreads();  // all have read the carry
    if (threadIdx.x == topk_threads - 1) carry[0] = base + sum;
    __syncthreads();
  }
}

// mask = above the k-th largest, or equal to it and among the first `wanted` that are
template <class T>
__global__ void __launch_bounds__(topk_threads)
    write_masks_kernel(const T* scores, int64_t n, const Selection* selection, const unsigned long long* before,
                       bool* mask) {
  SHARED_ARRAY(int32_t, of_warp, topk_warps);
  const int lane = int(threadIdx.x) % warp_size, warp = int(threadIdx.x) / warp_size;
  unsigned long long rank = before[blockIdx.x];  // of the first tie of this part of the tile
  for (int i = int(threadIdx.x); i < topk_tile; i += topk_threads) {
    const int64_t at = int64_t(blockIdx.x) * topk_tile + i;
    const Key<T> key = at < n ? key_of(scores[at]) : 0, last = Key<T>(selection->key);
    const bool tie = at < n && key == last;
    const unsigned ties = __ballot_sync(0xffffffffu, tie);
    if (lane == 0) of_warp[warp] = __popc(ties);
    __syncthreads();
    unsigned long long own = rank + static_cast<unsigned long long>(__popc(ties & ((1u << lane) - 1)));
    for (int w = 0; w < topk_warps; ++w) {
      if (w < warp) own += static_cast<unsigned long long>(of_warp[w]);
      rank += static_cast<unsigned long long>(of_warp[w]);
    }
    if (at < n) mask[at] = key > last || (tie && own < selection->wanted);
    __syncthreads();  // all have read the counts
  }
}

// ---- launching ----

template <class T>
struct Scores {
  const T* numbers;
  int64_t n;
  bool* mask;
};

inline int64_t topk_tiles(int64_t n) { return divided_up(n, topk_tile); }

// Masks of `count` tensors: their k largest numbers, k <= numbers of all. *selection is zero; ties and before hold
// a number for each tile of each tensor. A number that is not finite sets selection->bad and makes the masks
// meaningless.
template <class T>
void launch_topk(const Scores<T>* tensors, int count, int64_t k, Selection* selection, int32_t* ties,
                 unsigned long long* before, cudaStream_t stream) {
  constexpr int64_t most_blocks = 1024;
  constexpr int highest = 8 * sizeof(T) - 8;
  for (int shift = highest; shift >= 0; shift -= 8) {
    for (int i = 0; i < count; ++i)
      if (tensors[i].n > 0) {
        const int64_t blocks = divided_up(tensors[i].n, topk_threads * 4);
        launch(count_digits_kernel<T>, grid_of(blocks < most_blocks ? blocks : most_blocks), dim3(topk_threads),
               stream, tensors[i].numbers, tensors[i].n, count - 1 - i, shift, selection);
      }
    launch(choose_digit_kernel, dim3(1), dim3(1), stream, shift, shift == highest, k, selection);
  }
  int64_t tiles = 0;
  for (int i = 0; i < count; tiles += topk_tiles(tensors[i++].n))
    if (tensors[i].n > 0)
      launch(count_ties_kernel<T>, grid_of(topk_tiles(tensors[i].n)), dim3(topk_threads), stream,
             tensors[i].numbers, tensors[i].n, selection, ties + tiles);
  launch(scan_ties_kernel, dim3(1), dim3(topk_threads), stream, ties, tiles, before);
  tiles = 0;
  for (int i = 0; i < count; tiles += topk_tiles(tensors[i++].n))
    if (tensors[i].n > 0)
      launch(write_masks_kernel<T>, grid_of(topk_tiles(tensors[i].n)), dim3(topk_threads), stream,
             tensors[i].numbers, tensors[i].n, selection, before + tiles, tensors[i].mask);
}

}  // namespace sparseprune::cuda
