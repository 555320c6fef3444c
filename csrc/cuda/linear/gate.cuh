// The gradient that a ReLU lets pass, and the bias's gradient: its sum over each row.
#pragma once
#include "cuda/linear/spmm.cuh"

namespace sparseprune::cuda {

constexpr int gate_threads = 256;

// gated = g, but 0 where y <= 0; sum[r] = sum over the samples of gated[r, n]. y and gated are null where there is
// no ReLU. A block for each row: the same order of additions wherever it runs.
template <class T, int N>
__global__ void __launch_bounds__(gate_threads)
    gate_kernel(const T* g, const T* y, int64_t samples, T* gated, T* sum) {
  SHARED_ARRAY(float, of_warp, gate_threads / warp_size);
  const int lane = int(threadIdx.x) % warp_size, warp = int(threadIdx.x) / warp_size;
  const int64_t row = int64_t(blockIdx.x) * samples;
  float total = 0;
  for (int64_t n = int64_t(threadIdx.x) * N; n < samples; n += gate_threads * N) {
    float numbers[N];
    load<T, N>(g + row + n, numbers);
    if (y) {
      float outputs[N];
      load<T, N>(y + row + n, outputs);
#pragma unroll
      for (int i = 0; i < N; ++i)
        if (outputs[i] <= 0) numbers[i] = 0;  // NaN lets pass
      store<T, N>(numbers, gated + row + n);
    }
#pragma unroll
    for (int i = 0; i < N; ++i) total += numbers[i];
  }
  total = sum_of_group<warp_size>(total, 0xffffffffu);
  if (lane == 0) of_warp[warp] = total;
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int w = 1; w < gate_threads / warp_size; ++w) total += of_warp[w];
    sum[blockIdx.x] = T(total);
  }
}

// ---- launching ----

template <class T>
void launch_gate(int64_t rows, const T* g, const T* y, int64_t samples, T* gated, T* sum, cudaStream_t stream) {
  if (rows == 0) return;
  constexpr int vector = 16 / int(sizeof(T));
  const bool fit = vectors_fit<T>(vector, samples, g, g) && vectors_fit<T>(vector, samples, y, gated);
  launch(fit ? gate_kernel<T, vector> : gate_kernel<T, 1>, grid_of(rows), dim3(gate_threads), stream, g, y,
         samples, gated, sum);
}

}  // namespace sparseprune::cuda
