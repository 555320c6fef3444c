// What the kernels need of CUDA, for two compilers: nvcc for a GPU, and any C++ compiler for the tests, where a
// header of the tests (tests/simt/simt.h) runs threads on the CPU. No torch headers.
#pragma once
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <type_traits>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// Shared memory; a macro, since the emulator has to know the array's name and size.
#define SHARED_ARRAY(T, name, n) __shared__ T name[n]

namespace sparseprune::cuda {

using Half = __half;
using BFloat16 = __nv_bfloat16;

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 threads, cudaStream_t stream, Arguments... arguments) {
  kernel<<<grid, threads, 0, stream>>>(Parameters(arguments)...);
}

}  // namespace sparseprune::cuda

#else
#include <torch/headeronly/util/BFloat16.h>
#include <torch/headeronly/util/Half.h>

#include "simt.h"

#define SHARED_ARRAY(T, name, n)            \
  static const char simt_key_of_##name = 0; \
  auto& name = simt::shared<T, n>(&simt_key_of_##name)

namespace sparseprune::cuda {

using Half = c10::Half;
using BFloat16 = c10::BFloat16;
using simt::launch;

}  // namespace sparseprune::cuda

#endif

namespace sparseprune::cuda {

constexpr int warp_size = 32;

__host__ __device__ constexpr int64_t divided_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// Blocks of threads in one dimension, the only one of which there may be more than 65535.
inline dim3 grid_of(int64_t blocks) {
  if (blocks > INT32_MAX)
    throw std::invalid_argument("expected at most 2^31 - 1 blocks of CUDA threads, got " + std::to_string(blocks) +
                                "; use smaller batches");
  return dim3(unsigned(blocks));
}

// What is loaded or stored at once; its address is a multiple of its size.
template <int bytes>
struct [[gnu::may_alias]] alignas(bytes) Words {
  uint32_t at[bytes / 4];
};

// `n` numbers: one, or whole words.
template <class T, int n>
__device__ __forceinline__ void load(const T* from, float (&to)[n]) {
  if constexpr (n == 1) {
    to[0] = float(*from);
  } else {
    const Words<n * sizeof(T)> words = *reinterpret_cast<const Words<n * sizeof(T)>*>(from);
    T numbers[n];
    memcpy(static_cast<void*>(numbers), &words, sizeof words);
#pragma unroll
    for (int i = 0; i < n; ++i) to[i] = float(numbers[i]);
  }
}

// To global memory.
template <class T, int n>
__device__ __forceinline__ void store(const float (&from)[n], T* to) {
  if constexpr (n == 1) {
    *to = T(from[0]);
  } else {
    T numbers[n];
#pragma unroll
    for (int i = 0; i < n; ++i) numbers[i] = T(from[i]);
    Words<n * sizeof(T)> words;
    memcpy(&words, static_cast<const void*>(numbers), sizeof words);
#ifdef __CUDACC__
    // nvcc divides a plain assignment into stores of 4 bytes.
    if constexpr (sizeof words == 16)
      asm volatile("st.global.v4.u32 [%0],{%1,%2,%3,%4};" ::"l"(__cvta_generic_to_global(to)), "r"(words.at[0]),
                   "r"(words.at[1]), "r"(words.at[2]), "r"(words.at[3])
                   : "memory");
    else if constexpr (sizeof words == 8)
      asm volatile("st.global.v2.u32 [%0],{%1,%2};" ::"l"(__cvta_generic_to_global(to)), "r"(words.at[0]),
                   "r"(words.at[1])
                   : "memory");
    else
#endif
      *reinterpret_cast<Words<n * sizeof(T)>*>(to) = words;
  }
}

// The lanes of the caller's group of `size` neighbours in its warp.
template <int size>
__device__ __forceinline__ unsigned lanes_of_group() {
  const unsigned all = size == warp_size ? 0xffffffffu : (1u << (size % warp_size)) - 1;
  return all << (threadIdx.x % warp_size / size * size);
}

// The sum over a group, in the same order wherever it runs; every lane gets it.
template <int size>
__device__ __forceinline__ float sum_of_group(float value, unsigned lanes) {
#pragma unroll
  for (int by = size / 2; by > 0; by /= 2) value += __shfl_xor_sync(lanes, value, by);
  return value;
}

}  // namespace sparseprune::cuda
