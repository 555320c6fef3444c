// Sparse convolution and its gradients over batch-inner images, [channels, height, width, samples] in memory.
//
// Nothing is unrolled into a matrix: a table says for each column of the weight (channel, position in the kernel)
// how far away its pixel lies, and lanes read the pixel there. A vector of samples lies within one pixel, so that
// vectors are aligned whatever the stride and the padding. Pixels outside the image are not read, and not
// multiplied by zero either.
#pragma once
#include <algorithm>

#include "common/sizes.h"
#include "cuda/linear/sddmm.cuh"

namespace sparseprune::cuda {

// Sizes of a convolution. Results are at positions of which result (p, q) reads pixels
// (p * step_h + first_h + down, q * step_w + first_w + right) of the images; down and right are a tap's.
struct Extent {
  int32_t height, width;
};
struct ConvShape {
  Extent in, out;
  int32_t kernel_h, kernel_w, stride_h, stride_w, top, left, dilation_h, dilation_w;
  int32_t groups, channels, blocks;  // of a group: input channels, and block rows
  int32_t samples;
  int32_t phases_h, phases_w;  // of the input, those that the kernel reaches (common/geometry.h)

  __host__ __device__ int32_t taps() const { return kernel_h * kernel_w; }
  __host__ __device__ int32_t phases() const { return phases_h * phases_w; }
  __host__ __device__ int64_t pixels_in() const { return int64_t(in.height) * in.width; }
  __host__ __device__ int64_t pixels_out() const { return int64_t(out.height) * out.width; }
};

// Of a column of the weight, or of an index of the transposed plan: how far away its pixel lies from the result's.
struct Tap {
  int32_t offset;       // in pixels, the distance of channels included
  int16_t down, right;  // to see whether it is within the image
};

constexpr int conv_threads = 128;
constexpr int conv_blocks = 4;  // as spmm_blocks

// Where the phase of the input begins whose gradient position k of the kernel adds to, along one axis, and where
// the output's gradient then is, counted from the position within the phase. Phase number i is that of position i
// (common/geometry.h).
struct Reached {
  int32_t phase, step;
};
__device__ __forceinline__ Reached reached_by(int32_t k, int32_t stride, int32_t pad, int32_t dilation) {
  const int32_t at = k * dilation - pad, phase = (at % stride + stride) % stride;
  return {phase, (phase - at) / stride};
}

template <bool transposed>
__global__ void __launch_bounds__(conv_threads) fill_taps_kernel(ConvShape of, int32_t block_rows, Tap* taps) {
  const int32_t count = (transposed ? of.blocks : of.channels) * of.taps();
  const int32_t i = int32_t(blockIdx.x) * conv_threads + int32_t(threadIdx.x);
  if (i >= count) return;
  const int32_t plane = i / of.taps(), tap = i % of.taps(), kh = tap / of.kernel_w, kw = tap % of.kernel_w;
  const int32_t down = transposed ? reached_by(kh, of.stride_h, of.top, of.dilation_h).step : kh * of.dilation_h,
                right = transposed ? reached_by(kw, of.stride_w, of.left, of.dilation_w).step : kw * of.dilation_w;
  const Extent images = transposed ? of.out : of.in;
  const int32_t pixels = images.height * images.width;
  taps[i] = {plane * (transposed ? block_rows : 1) * pixels + down * images.width + right, int16_t(down),
             int16_t(right)};
}

// Positions of the input of one phase along an axis.
__device__ __forceinline__ int32_t positions_of(int32_t size, int32_t stride, int32_t phase) {
  return phase < size ? (size - phase + stride - 1) / stride : 0;
}

// y[r V + v, position, n] = bias[r V + v] + sum_j value[j, v] x[channel_j, pixel_j of the position, n].
//
// Transposed: rows are (group, phase, channel) of the input, results its gradient at the positions of the phase,
// and x is the output's gradient:
//   y[channel, position, n] = sum_jv value[source_j, v] x[block_j V + v, pixel_j of the position, n]
//
// A group of L lanes takes L vectors of N numbers of the results of a row, positions and samples in one sequence.
template <class T, int V, int N, int L, bool transposed>
__global__ void __launch_bounds__(conv_threads, conv_blocks)
    conv_kernel(Rows rows, const int32_t* source, const T* value, const Tap* taps, ConvShape of, const T* x,
                const T* bias, T* y) {
  constexpr int groups = conv_threads / L, staged = staged_nonzeros<V>, results = transposed ? 1 : V;
  SHARED_ARRAY(Tap, tap_of, groups * staged);
  SHARED_ARRAY(float, values, groups * staged * V);
  const int group = int(threadIdx.x) / L, lane = int(threadIdx.x) % L;
  const unsigned lanes = lanes_of_group<L>();
  const unsigned row_blocks = unsigned(divided_up(rows.count, groups));
  const int64_t place = int64_t(blockIdx.x % row_blocks) * groups + group;
  if (place >= rows.count) return;  // the whole group: others do not wait for it
  const int32_t row = rows.order ? rows.order[place] : int32_t(place);

  // Where the results of this row are.
  int32_t phase_h = 0, phase_w = 0, height = of.out.height, width = of.out.width, group_of_row = row / of.blocks;
  if (transposed) {
    const int32_t phase = row / of.channels % of.phases();
    phase_h = reached_by(phase / of.phases_w, of.stride_h, of.top, of.dilation_h).phase;
    phase_w = reached_by(phase % of.phases_w, of.stride_w, of.left, of.dilation_w).phase;
    height = positions_of(of.in.height, of.stride_h, phase_h);
    width = positions_of(of.in.width, of.stride_w, phase_w);
    group_of_row = row / of.channels / of.phases();
  }
  const uint32_t numbers = uint32_t(height) * uint32_t(width) * uint32_t(of.samples);
  const uint32_t tile = blockIdx.x / row_blocks * (L * N);
  if (tile >= numbers) return;  // the whole group
  const uint32_t first = tile + uint32_t(lane) * N;
  const bool here = first < numbers;
  const uint32_t position = first / uint32_t(of.samples), sample = first % uint32_t(of.samples);
  const int32_t p = int32_t(position / uint32_t(width)), q = int32_t(position % uint32_t(width));

  // What they read. A lane without results is outside every image.
  const Extent images = transposed ? of.out : of.in;
  const int64_t pixels = int64_t(images.height) * images.width;
  const int32_t from_h = !here        ? INT32_MIN / 2
                         : transposed ? p
                                      : p * of.stride_h - of.top,
                from_w = transposed ? q : q * of.stride_w - of.left;
  const int64_t planes = int64_t(group_of_row) * (transposed ? of.blocks * V : of.channels);
  const T* from = x + (planes * pixels + int64_t(from_h) * images.width + from_w) * of.samples + sample;

  float sum[results][N] = {};
  const int32_t end = rows.start[row + 1];
  for (int32_t begin = rows.start[row]; begin < end; begin += staged) {
    const int count = end - begin < staged ? end - begin : staged;
    __syncwarp(lanes);  // all have read what was staged before
    for (int j = lane; j < count; j += L) tap_of[group * staged + j] = taps[rows.index[begin + j]];
    stage_values<V, L, transposed>(value, source, begin, count, lane, &values[group * staged * V]);
    __syncwarp(lanes);
#pragma unroll 2
    for (int j = 0; j < count; ++j) {
      const Tap tap = tap_of[group * staged + j];
      if (uint32_t(from_h + tap.down) >= uint32_t(images.height) ||
          uint32_t(from_w + tap.right) >= uint32_t(images.width))
        continue;
      const T* pixel = from + int64_t(tap.offset) * of.samples;
      add_products<V, transposed>(&values[(group * staged + j) * V], pixel, pixels * of.samples, sum);
    }
  }
  if (here)
#pragma unroll
    for (int v = 0; v < results; ++v) {
      const int64_t plane =
          transposed ? int64_t(group_of_row) * of.channels + row % of.channels : int64_t(row) * V + v;
      const int64_t pixel =
          transposed ? (plane * of.in.height + p * of.stride_h + phase_h) * of.in.width + q * of.stride_w + phase_w
                     : (plane * of.out.height + p) * of.out.width + q;
      const float b = bias ? float(bias[plane]) : 0.0f;
#pragma unroll
      for (int n = 0; n < N; ++n) sum[v][n] += b;
      store<T, N>(sum[v], y + pixel * of.samples + sample);
    }
}

// sum[part, j, v] = sum over a part of the output's positions, and all samples, of
// g[r V + v, position, n] x[channel_j, pixel_j of the position, n], for the nonzeros j of row r. A group of 8
// lanes for a nonzero: pixels outside the image are the same for all of them.
template <class T, int V, int N>
__global__ void __launch_bounds__(sddmm_threads, sddmm_blocks)
    conv_sddmm_kernel(Rows rows, const Tap* taps, ConvShape of, const T* g, const T* x, int32_t positions_of_part,
                      int64_t nonzeros, float* sum) {
  [[maybe_unused]] constexpr int unrolled = V <= 4 ? 2 : 1;  // nvcc would take more, and spill
  const int group = int(threadIdx.x) / sddmm_lanes, lane = int(threadIdx.x) % sddmm_lanes;
  const unsigned lanes = lanes_of_group<sddmm_lanes>();
  const unsigned part = blockIdx.x / unsigned(rows.count), place = blockIdx.x % unsigned(rows.count);
  const int32_t row = rows.order ? rows.order[place] : int32_t(place);
  const int32_t pixels = int32_t(of.pixels_out()), begin = int32_t(part) * positions_of_part;
  const int32_t end = begin + positions_of_part < pixels ? begin + positions_of_part : pixels;
  const int64_t plane = int64_t(pixels) * of.samples;
  const T* planes_of_g = g + int64_t(row) * V * plane;
  const T* planes_of_x = x + int64_t(row / of.blocks) * of.channels * of.pixels_in() * of.samples;
  for (int32_t j = rows.start[row] + group; j < rows.start[row + 1]; j += sddmm_threads / sddmm_lanes) {
    const Tap tap = taps[rows.index[j]];
    float total[V] = {};
    int32_t p = begin / of.out.width, q = begin % of.out.width;
    for (int32_t position = begin; position < end; ++position) {
      const int32_t h = p * of.stride_h - of.top, w = q * of.stride_w - of.left;
      if (uint32_t(h + tap.down) < uint32_t(of.in.height) && uint32_t(w + tap.right) < uint32_t(of.in.width)) {
        const T* pixel = planes_of_x + (int64_t(tap.offset) + h * of.in.width + w) * of.samples;
        const T* result = planes_of_g + int64_t(position) * of.samples;
#pragma unroll unrolled
        for (int32_t n = lane * N; n < of.samples; n += sddmm_lanes * N) {
          float of_x[N];
          load<T, N>(pixel + n, of_x);
#pragma unroll
          for (int v = 0; v < V; ++v) {
            float of_g[N];
            load<T, N>(result + v * plane + n, of_g);
#pragma unroll
            for (int i = 0; i < N; ++i) total[v] += of_g[i] * of_x[i];
          }
        }
      }
      if (++q == of.out.width) q = 0, ++p;
    }
#pragma unroll
    for (int v = 0; v < V; ++v) {
      const float all = sum_of_group<sddmm_lanes>(total[v], lanes);
      if (lane == 0) sum[(int64_t(part) * nonzeros + j) * V + v] = all;
    }
  }
}

// ---- launching ----

// Numbers of the largest result, and taps, must fit what kernels count with.
inline void check_sizes(const ConvShape& of, int64_t block_rows) {
  const int64_t numbers = product({std::max(of.pixels_in(), of.pixels_out()), of.samples});
  if (numbers > INT32_MAX)
    throw std::invalid_argument("expected fewer than 2^31 numbers in a channel of a batch, got " +
                                std::to_string(numbers) + "; use smaller batches");
  const int64_t reach_h = int64_t(of.kernel_h) * of.dilation_h + of.top + of.stride_h,
                reach_w = int64_t(of.kernel_w) * of.dilation_w + of.left + of.stride_w;
  const int64_t reach = std::max(reach_h, reach_w);
  if (reach > INT16_MAX)
    throw std::invalid_argument(
        "expected kernels that reach less than 2^15 pixels, padding and stride included, got " +
        std::to_string(reach));
  const auto farthest = [&](int64_t planes, const Extent& images) {
    const int64_t rows = product({planes, images.height});
    return rows > INT32_MAX ? rows : (rows + reach_h) * images.width + reach_w;
  };
  const int64_t offset = std::max(farthest(of.channels, of.in), farthest(int64_t(of.blocks) * block_rows, of.out));
  if (offset > INT32_MAX)
    throw std::invalid_argument("expected fewer than 2^31 pixels in the channels of an image, got " +
                                std::to_string(offset) + "; use smaller images");
  const int64_t columns = product({std::max(of.channels, of.blocks), of.kernel_h, of.kernel_w});
  if (columns > INT32_MAX)
    throw std::invalid_argument("expected fewer than 2^31 weights of an output channel, got " +
                                std::to_string(columns));
}

// Taps of a workspace for the kernels below.
inline int64_t conv_taps(const ConvShape& of, bool transposed) {
  return int64_t(transposed ? of.blocks : of.channels) * of.taps();
}

template <bool transposed>
void fill_taps(const ConvShape& of, int64_t block_rows, Tap* taps, cudaStream_t stream) {
  check_sizes(of, block_rows);
  if (const int64_t count = conv_taps(of, transposed))
    launch(fill_taps_kernel<transposed>, grid_of(divided_up(count, conv_threads)), dim3(conv_threads), stream, of,
           int32_t(block_rows), taps);
}

template <class T, int V, bool transposed>
void run_conv(const Rows& rows, const int32_t* source, const T* value, const ConvShape& of, const T* x,
              const T* bias, Tap* taps, T* y, cudaStream_t stream) {
  fill_taps<transposed>(of, V, taps, stream);
  // Of the first phase, which has no fewer positions than the others.
  const int64_t numbers =
      transposed ? divided_up(of.in.height, of.stride_h) * divided_up(of.in.width, of.stride_w) * of.samples
                 : of.pixels_out() * of.samples;
  if (rows.count == 0 || numbers == 0) return;
  const auto run = [&](auto n, auto l) {
    constexpr int N = n.value, L = l.value;
    const int64_t blocks = divided_up(rows.count, conv_threads / L) * divided_up(numbers, N * L);
    launch(conv_kernel<T, V, N, L, transposed>, grid_of(blocks), dim3(conv_threads), stream, rows, source, value,
           taps, of, x, bias, y);
  };
  constexpr int vector = vector_numbers<T, V>;
  if (vectors_fit<T>(vector, of.samples, x, y))
    run(std::integral_constant<int, vector>{}, std::integral_constant<int, 16>{});
  else
    run(std::integral_constant<int, 1>{}, std::integral_constant<int, 32>{});
}

// y [groups * blocks * V, out height, out width, samples]; workspace: conv_taps(of, false)
template <class T, int V>
void launch_conv(const Rows& rows, const T* value, const ConvShape& of, const T* x, const T* bias, Tap* taps, T* y,
                 cudaStream_t stream) {
  run_conv<T, V, false>(rows, nullptr, value, of, x, bias, taps, y, stream);
}

// d_x [groups * channels, in height, in width, samples] where a phase is reached, of rows (group, phase, channel)
// with indices block row within the group * taps + tap (common/conv_plan.h); workspace: conv_taps(of, true)
template <class T, int V>
void launch_conv_t(const Rows& rows, const int32_t* source, const T* value, const ConvShape& of, const T* g,
                   Tap* taps, T* d_x, cudaStream_t stream) {
  run_conv<T, V, true>(rows, source, value, of, g, nullptr, taps, d_x, stream);
}

// Parts of the output's positions.
inline Parts parts_of_conv(const ConvShape& of, int64_t rows) {
  const int64_t pixels = of.pixels_out(), count = parts_of(pixels * of.samples, rows).count;
  return {count, std::max<int64_t>(divided_up(pixels, count), 1)};
}

// d_value [nonzeros, V]; workspaces: conv_taps(of, false), and parts.count x nonzeros x V numbers
template <class T, int V>
void launch_conv_sddmm(const Rows& rows, int64_t nonzeros, const ConvShape& of, const T* g, const T* x, Tap* taps,
                       const Parts& parts, float* workspace, T* d_value, cudaStream_t stream) {
  if (nonzeros == 0) return;
  fill_taps<false>(of, V, taps, stream);
  constexpr int vector = V < 16 ? vector_numbers<T, V> : 2;  // of more numbers nvcc spills some
  const auto kernel =
      vectors_fit<T>(vector, of.samples, g, x) ? conv_sddmm_kernel<T, V, vector> : conv_sddmm_kernel<T, V, 1>;
  launch(kernel, grid_of(rows.count * parts.count), dim3(sddmm_threads), stream, rows, taps, of, g, x,
         int32_t(parts.numbers), nonzeros, workspace);
  sum_parts(workspace, parts, nonzeros * V, d_value, stream);
}

}  // namespace sparseprune::cuda
