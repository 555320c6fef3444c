// Batch normalisation with what surrounds it, y = relu(batch_norm(x) + residual), and its gradients.
//
// A block of threads takes a part of a channel (channels.cuh). Every pass reads its operands once, from device
// memory.
#pragma once
#include <cmath>

#include "cuda/batch_norm/channels.cuh"

namespace sparseprune::cuda {

// Statistics and parameters, a number for each channel; weight and bias may be null, for 1 and 0.
struct BatchNorm {
  const float *mean, *var, *weight, *bias;
  float eps;
};

struct ChannelNorm {
  float mean, rstd, scale, bias;
};

__device__ __forceinline__ ChannelNorm norm_of(const BatchNorm& norm, int32_t channel) {
  const float rstd = 1 / sqrtf(norm.var[channel] + norm.eps);
  return {norm.mean[channel], rstd, norm.weight ? norm.weight[channel] * rstd : rstd,
          norm.bias ? norm.bias[channel] : 0.0f};
}

// The forward and the backward pass compute this the same way to the last bit: no compiler fuses it differently.
__device__ __forceinline__ float normalized(float x, float mean, float scale, float bias) {
  return fmaf(x - mean, scale, bias);
}

// moments[channel, part] = mean of the part, and the sum of squared differences from it. Two passes over numbers
// in registers: accurate however large the mean is.
template <class T, int N>
__global__ void __launch_bounds__(norm_threads, norm_blocks)
    part_moments_kernel(Channels of, const T* __restrict__ x, float* __restrict__ moments) {
  SHARED_ARRAY(float, sums, norm_warps);
  SHARED_ARRAY(float, squares, norm_warps);
  constexpr int B = norm_batch<N>, step = norm_threads * N, batches = norm_part / (B * step);
  const NormPart part = part_of_block(of);
  const uint32_t first = part.begin + threadIdx.x * N;
  const auto here = [&](int i, int b) { return first + uint32_t(i * B + b) * step < part.end; };
  float numbers[batches][B][N] = {};
#pragma unroll
  for (int i = 0; i < batches; ++i)
    if (here(i, 0)) {
      int64_t at[B];
      places_of_vectors<N>(of, part, first + i * B * step, at);
      load_batch<T, N>(x, at, numbers[i]);
    }
  float sum = 0;
#pragma unroll
  for (int i = 0; i < batches; ++i)
#pragma unroll
    for (int b = 0; b < B; ++b)
#pragma unroll
      for (int n = 0; n < N; ++n) sum += here(i, b) ? numbers[i][b][n] : 0;
  const float mean = sum_of_block(sum, sums) / float(part.end - part.begin);
  float square = 0;
#pragma unroll
  for (int i = 0; i < batches; ++i)
#pragma unroll
    for (int b = 0; b < B; ++b)
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const float away = here(i, b) ? numbers[i][b][n] - mean : 0;
        square += away * away;
      }
  square = sum_of_block(square, squares);
  if (threadIdx.x == 0) {
    moments[2 * int64_t(blockIdx.x)] = mean;
    moments[2 * int64_t(blockIdx.x) + 1] = square;
  }
}

// Mean and variance of a channel from those of its parts: its numbers' differences from the mean are those from
// the mean of their part, and that of the part (Chan, Golub, LeVeque, 1983).
static __global__ void __launch_bounds__(norm_threads, norm_blocks)
    statistics_kernel(Channels of, const float* __restrict__ moments, float* __restrict__ mean,
                      float* __restrict__ var) {
  const int64_t channel = channel_of_warp(), parts = of.parts();
  if (channel >= of.channels) return;
  const int lane = int(threadIdx.x) % warp_size;
  const double all = double(of.numbers());
  const auto numbers = [&](int64_t part) {
    return part + 1 < parts ? double(norm_part) : all - double(part) * norm_part;
  };
  const float* of_part = moments + 2 * channel * parts;
  double sum = 0;
  for (int64_t part = lane; part < parts; part += warp_size) sum += numbers(part) * double(of_part[2 * part]);
  const double average = sum_of_warp(sum) / all;
  double squares = 0;
  for (int64_t part = lane; part < parts; part += warp_size) {
    const double away = double(of_part[2 * part]) - average;
    squares += double(of_part[2 * part + 1]) + numbers(part) * away * away;
  }
  squares = sum_of_warp(squares);
  if (lane == 0) {
    mean[channel] = float(average);
    var[channel] = float(squares / all);
  }
}

template <class T, int N>
__global__ void __launch_bounds__(norm_threads, norm_blocks)
    normalize_kernel(Channels of, const T* __restrict__ x, BatchNorm norm, const T* __restrict__ residual,
                     bool relu, T* __restrict__ y) {
  const NormPart part = part_of_block(of);
  const ChannelNorm channel = norm_of(norm, part.channel);
  constexpr int B = norm_batch<N>;
  for (uint32_t k = part.begin + threadIdx.x * N; k < part.end; k += B * norm_threads * N) {
    int64_t at[B];
    places_of_vectors<N>(of, part, k, at);
    float numbers[B][N], added[B][N] = {};
    load_batch<T, N>(x, at, numbers);
    if (residual) load_batch<T, N>(residual, at, added);
#pragma unroll
    for (int b = 0; b < B; ++b)
#pragma unroll
      for (int n = 0; n < N; ++n) {
        float& number = numbers[b][n];
        number = normalized(number, channel.mean, channel.scale, channel.bias);
        if (residual) number += added[b][n];
        if (relu && number < 0) number = 0;  // NaN stays NaN
      }
    store_batch<T, N>(numbers, part, k, at, y);
  }
}

// Vectors of g, 0 where relu made the output 0. Outputs are those of y or, where that is null, computed again from
// x and rounded as they were for y.
template <class T, int N, int B>
__device__ __forceinline__ void load_gated(const T* g, const T* y, const int64_t (&at)[B], bool relu,
                                           const float (&x)[B][N], const ChannelNorm& channel,
                                           float (&gated)[B][N]) {
  load_batch<T, N>(g, at, gated);
  if (!relu) return;
  float outputs[B][N];
  if (y) load_batch<T, N>(y, at, outputs);
#pragma unroll
  for (int b = 0; b < B; ++b)
#pragma unroll
    for (int n = 0; n < N; ++n) {
      const float output =
          y ? outputs[b][n] : float(T(normalized(x[b][n], channel.mean, channel.scale, channel.bias)));
      if (output <= 0) gated[b][n] = 0;  // not where it is NaN
    }
}

// sums[channel, part] = sum of gated g, and of gated g (x - mean), over the part; gated g to d_residual unless
// null
template <class T, int N>
__global__ void __launch_bounds__(norm_threads, norm_blocks)
    part_gradient_sums_kernel(Channels of, const T* __restrict__ g, const T* __restrict__ x, BatchNorm norm,
                              const T* __restrict__ y, bool relu, T* __restrict__ d_residual,
                              float* __restrict__ sums) {
  SHARED_ARRAY(float, sums_of_g, norm_warps);
  SHARED_ARRAY(float, sums_of_product, norm_warps);
  const NormPart part = part_of_block(of);
  const ChannelNorm channel = norm_of(norm, part.channel);
  float of_g = 0, of_product = 0;
  constexpr int B = norm_batch<N>;
  for (uint32_t k = part.begin + threadIdx.x * N; k < part.end; k += B * norm_threads * N) {
    int64_t at[B];
    places_of_vectors<N>(of, part, k, at);
    float of_x[B][N], gated[B][N];
    load_batch<T, N>(x, at, of_x);
    load_gated<T, N>(g, y, at, relu, of_x, channel, gated);
    if (d_residual) store_batch<T, N>(gated, part, k, at, d_residual);
#pragma unroll
    for (int b = 0; b < B; ++b)
      if (k + b * norm_threads * N < part.end)
#pragma unroll
        for (int n = 0; n < N; ++n) {
          of_g += gated[b][n];
          of_product += gated[b][n] * (of_x[b][n] - channel.mean);
        }
  }
  of_g = sum_of_block(of_g, sums_of_g);
  of_product = sum_of_block(of_product, sums_of_product);
  if (threadIdx.x == 0) {
    sums[2 * int64_t(blockIdx.x)] = of_g;
    sums[2 * int64_t(blockIdx.x) + 1] = of_product;
  }
}

// d_bias = sum of gated g, d_weight = sum of gated g (x - mean) / sqrt(var + eps)
static __global__ void __launch_bounds__(norm_threads, norm_blocks)
    parameter_gradients_kernel(Channels of, const float* __restrict__ sums, BatchNorm norm,
                               float* __restrict__ d_weight, float* __restrict__ d_bias) {
  const int64_t channel = channel_of_warp(), parts = of.parts();
  if (channel >= of.channels) return;
  const int lane = int(threadIdx.x) % warp_size;
  double of_g = 0, of_product = 0;
  for (int64_t part = lane; part < parts; part += warp_size) {
    of_g += double(sums[2 * (channel * parts + part)]);
    of_product += double(sums[2 * (channel * parts + part) + 1]);
  }
  of_g = sum_of_warp(of_g);
  of_product = sum_of_warp(of_product);
  if (lane == 0) {
    d_weight[channel] = float(of_product * double(norm_of(norm, int32_t(channel)).rstd));
    d_bias[channel] = float(of_g);
  }
}

// d_x = scale gated g; in training, statistics depend on x too:
// d_x = scale (gated g - d_bias / n - (x - mean) rstd d_weight / n)
template <class T, int N>
__global__ void __launch_bounds__(norm_threads, norm_blocks)
    gradient_kernel(Channels of, const T* __restrict__ g, const T* __restrict__ x, BatchNorm norm,
                    const T* __restrict__ y, bool relu, bool training, const float* __restrict__ d_weight,
                    const float* __restrict__ d_bias, T* __restrict__ d_x) {
  const NormPart part = part_of_block(of);
  const ChannelNorm channel = norm_of(norm, part.channel);
  const float share = 1 / float(of.numbers());
  const float of_g = share * d_bias[part.channel], of_away = share * d_weight[part.channel] * channel.rstd;
  constexpr int B = norm_batch<N>;
  for (uint32_t k = part.begin + threadIdx.x * N; k < part.end; k += B * norm_threads * N) {
    int64_t at[B];
    places_of_vectors<N>(of, part, k, at);
    float of_x[B][N], gated[B][N];
    load_batch<T, N>(x, at, of_x);
    load_gated<T, N>(g, y, at, relu, of_x, channel, gated);
#pragma unroll
    for (int b = 0; b < B; ++b)
#pragma unroll
      for (int n = 0; n < N; ++n) {
        if (training) gated[b][n] -= of_g + (of_x[b][n] - channel.mean) * of_away;
        gated[b][n] *= channel.scale;
      }
    store_batch<T, N>(gated, part, k, at, d_x);
  }
}

// ---- launching ----

// Numbers of workspace for the functions below, whose results may not overlap what they read.
inline int64_t batch_norm_workspace(const Channels& of) { return 2 * of.parts() * of.channels; }

// mean and (biased) variance of each channel; NaN where it has no numbers
template <class T>
void batch_norm_statistics(const Channels& of, const T* x, float* workspace, float* mean, float* var,
                           cudaStream_t stream) {
  if (of.channels == 0) return;
  if (of.numbers() > 0)
    for_vectors<T>(
        of,
        [&](auto n) {
          launch(part_moments_kernel<T, n.value>, blocks_of_parts(of), dim3(norm_threads), stream, of, x,
                 workspace);
        },
        x);
  launch(statistics_kernel, blocks_of_channels(of), dim3(norm_threads), stream, of, workspace, mean, var);
}

// y = (x - mean) weight / sqrt(var + eps) + bias + residual, and its maximum with 0 if relu; residual may be null
template <class T>
void batch_norm_normalize(const Channels& of, const T* x, const BatchNorm& norm, const T* residual, bool relu,
                          T* y, cudaStream_t stream) {
  if (of.channels == 0 || of.numbers() == 0) return;
  for_vectors<T>(
      of,
      [&](auto n) {
        launch(normalize_kernel<T, n.value>, blocks_of_parts(of), dim3(norm_threads), stream, of, x, norm,
               residual, relu, y);
      },
      x, residual, y);
}

// The gradients of batch_norm_normalize where its output's is g. Training: mean and var are those of x. y is the
// output; it may be null without relu, and where there was no residual, since it can be computed again then.
// d_residual may be null.
template <class T>
void batch_norm_gradients(const Channels& of, const T* g, const T* x, const BatchNorm& norm, const T* y, bool relu,
                          bool training, float* workspace, T* d_x, T* d_residual, float* d_weight, float* d_bias,
                          cudaStream_t stream) {
  if (of.channels == 0) return;
  const auto run_gradient_sums = [&](auto n) {
    launch(part_gradient_sums_kernel<T, n.value>, blocks_of_parts(of), dim3(norm_threads), stream, of, g, x, norm,
           y, relu, d_residual, workspace);
  };
  const auto run_gradient = [&](auto n) {
    // d_residual is g with the gate applied.
    launch(gradient_kernel<T, n.value>, blocks_of_parts(of), dim3(norm_threads), stream, of,
           d_residual ? d_residual : g, x, norm, y, relu && !d_residual, training, d_weight, d_bias, d_x);
  };
  if (of.numbers() > 0) for_vectors<T>(of, run_gradient_sums, g, x, y, d_residual);
  launch(parameter_gradients_kernel, blocks_of_channels(of), dim3(norm_threads), stream, of, workspace, norm,
         d_weight, d_bias);
  if (of.numbers() > 0) for_vectors<T>(of, run_gradient, g, x, y, d_residual, d_x);
}

}  // namespace sparseprune::cuda
