// What one instruction set implements: loops over raw pointers, no torch, no threads, no allocation.
#pragma once
#include <cstdint>
#include <cstring>
#include <type_traits>

namespace sparseprune {

// Activations are computed in panels of this many samples: 4 cache lines of float32, so that one weight and one
// column index are spread over 4 vectors of arithmetic, while 1024 features of a panel take a quarter of an L2.
constexpr int panel_width = 64;

// The narrowest panel: one AVX-512 load. Samples are padded with zeros to a multiple of it.
template <class Element>
constexpr int sample_multiple = 64 / sizeof(Element);
template <>
inline constexpr int sample_multiple<double> = 16;

struct BFloat16 {
  uint16_t bits;
};

// Products of Elements are accumulated in this type.
template <class Element>
using Sum = std::conditional_t<std::is_same_v<Element, double>, double, float>;

inline double widened(double a) { return a; }
inline float widened(float a) { return a; }
inline float widened(BFloat16 a) {
  const uint32_t bits = uint32_t(a.bits) << 16;
  float result;
  std::memcpy(&result, &bits, sizeof result);
  return result;
}

template <class Element>
inline Element rounded(Sum<Element> a) {
  return a;
}
template <>
inline BFloat16 rounded<BFloat16>(float a) {  // to nearest, ties to even
  uint32_t bits;
  std::memcpy(&bits, &a, sizeof bits);
  if (a != a) return {uint16_t(bits >> 16 | 0x40)};
  return {uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16)};
}

// Rows of a pattern within one block of its columns. Nonzeros of row i: begin[i] .. end[i].
struct Segments {
  const int32_t* begin;
  const int32_t* end;
  int32_t rows;
  const uint16_t* column;  // of every nonzero, counted from the block's first one
};

struct ColumnBlocks {
  int32_t count;
  int64_t block_cols;
  int64_t rows_of_plan;
};

// A [features, batch] matrix of any strides (in elements).
template <class Scalar>
struct Strided {
  Scalar* data;
  int64_t feature_stride;
  int64_t batch_stride;
};

// Consecutive samples of each feature: (feature f, sample b) at f * stride + b, b < width. A panel of
// Sum<BFloat16> holds the even ones of every two vectors of samples, then the odd ones (Vec::load_pair).
template <class Scalar>
struct Panel {
  Scalar* data;
  int64_t stride;
  int width;  // multiple of sample_multiple
};

// ---- convolution: SpMM whose rows of x overlap ----
//
// A tile of x is packed as [channels, rows, columns, lanes] (cpu/conv/tile.h), so that what a nonzero (channel,
// position in the kernel) multiplies is as many consecutive numbers as are computed, at a fixed offset from their
// first.

// Numbers computed at once are a multiple of this.
constexpr int conv_lanes = 16;

// Rows of a pattern: the nonzeros of row i are start[i] .. start[i + 1], and nonzero j reads from offset[j] on.
struct OffsetRows {
  const int32_t* start;
  int32_t rows;
  const int32_t* offset;
};

// Where the numbers of a run are outside of tiles: number k of row i at
//   i * row_stride + k / lanes * pixel_stride + k % lanes
template <class Scalar>
struct Run {
  Scalar* data;
  int64_t row_stride;
  int64_t pixel_stride;
  int lanes;  // a multiple of conv_lanes
};

// `pixels` neighbours of one row of an image, `samples` consecutive numbers each.
template <class Scalar>
struct Pixels {
  Scalar* data;
  int64_t pixel_stride;
  int pixels;
  int samples;
  int64_t ahead = 0;  // from a number to one that will be read soon
};

// ---- batch normalisation ----

// Numbers of a channel that its kernels take at once: sums of so few lose little, and they stay in the L1 cache.
constexpr int norm_block = 2048;

// y = (x - mean) scale + bias
template <class Scalar>
struct Normalization {
  Scalar mean, scale, bias;
};

// A gradient g, counted as 0 where the output of a ReLU was not positive: where y <= 0, or, without y and with
// `recompute`, where the normalised x is.
template <class Element>
struct GatedGradient {
  const Element* g;
  const Element* x;
  const Element* y;
  bool recompute;
  Normalization<Sum<Element>> of;
};

// d_x = of_g g + of_x (x - mean) + constant
template <class Scalar>
struct NormGradient {
  Scalar of_g, of_x, constant;
};

// What becomes of the sums of SpMM and of convolutions.
template <class Scalar>
struct Epilogue {
  const Scalar* add;   // what is added, laid out as y, or null: y itself, or a residual
  const Scalar* bias;  // one for each row of y, or null
  bool relu;           // max(y, 0), NaN stays NaN

  // For numbers further on in y, in rows below.
  Epilogue moved(int64_t numbers, int64_t rows = 0) const {
    return {add ? add + numbers : nullptr, bias ? bias + rows : nullptr, relu};
  }
};

template <class Element>
struct KernelsOf {
  // panel[f, b] = x[f, b] for b < batch; zero up to the panel's width. One of x's strides is 1. With a gate of the
  // same layout (its data may be null), zero too where gate[f, b] <= 0: the derivative of ReLU from its output.
  void (*pack)(Strided<const Element> x, Strided<const Element> gate, int64_t features, int batch,
               Panel<Element> panel);
  // y[f, b] = panel[f, b] for b < batch. One of y's strides is 1.
  void (*unpack)(Panel<const Sum<Element>> panel, int64_t features, int batch, Strided<Element> y);
  // sum[f] += sum_b panel[f, b]
  void (*add_row_sums)(Panel<const Element> panel, int64_t features, Sum<Element>* sum);

  // SpMM. Row i of the segments is `block_rows` rows of y, and nonzero j as many values:
  //   y[i V + v, :] = sum_j value[j V + v] x[column_j, :]
  void (*spmm)(const Segments& segments, int block_rows, const Sum<Element>* value, Panel<const Element> x,
               Epilogue<Sum<Element>> epilogue, Panel<Sum<Element>> y);
  // The same for one sample, and for all blocks of columns at once: block k's segments are those given, moved on
  // by k * rows_of_plan, and its first column is k * block_cols.
  //   y[i V + v] += sum_j value[j V + v] x[column_j]
  void (*spmv)(const Segments& segments, ColumnBlocks blocks, int block_rows, const Element* value,
               const Sum<Element>* x, Sum<Element>* y);
  // Gradients. Row i of the segments is a column of the weight, nonzero j is a block of `block_rows` rows of g:
  //   d_x[i, :] = sum_jv value[j V + v] g[column_j V + v, :]       unless value is null    (add: d_x += instead)
  //   d_value[j V + v] += sum_b x[i, b] g[column_j V + v, b]       unless d_value is null  (SDDMM)
  void (*gradients)(const Segments& segments, int block_rows, const Sum<Element>* value, Panel<const Element> g,
                    Panel<const Element> x, bool add, Panel<Sum<Element>> d_x, Sum<Element>* d_value);

  // Convolution, n numbers at once (a multiple of conv_lanes), whose first ones are given:
  //   y[i V + v, k] = sum_j value[j V + v] x[offset_j + k]
  void (*conv)(OffsetRows rows, int block_rows, const Sum<Element>* value, const Sum<Element>* x, int n,
               Epilogue<Sum<Element>> epilogue, Run<Sum<Element>> y);
  // Its gradients. Row i is a channel of x, nonzero j a block of `block_rows` channels of g, `g_stride` apart:
  //   d_x[i, k] = sum_jv value[j V + v] g[offset_j + v g_stride + k]                       unless value is null
  //   d_value[j V + v] += sum_k x[i, k] g[offset_j + v g_stride + k]                       unless d_value is null
  void (*conv_gradients)(OffsetRows rows, int block_rows, const Sum<Element>* value, const Sum<Element>* g,
                         int64_t g_stride, int n, Run<const Sum<Element>> x, Run<Sum<Element>> d_x,
                         Sum<Element>* d_value);
  // to[p * lanes + b] = from pixel p, sample b, for b < from.samples; zero up to `lanes`.
  void (*pack_pixels)(Pixels<const Element> from, Sum<Element>* to, int lanes);
  // The other way round.
  void (*unpack_pixels)(const Sum<Element>* from, int lanes, Pixels<Element> to);

  // Batch normalisation of n <= norm_block numbers of a channel.
  // sum = sum_k x[k], squares = sum_k (x[k] - sum / n)^2
  void (*moments)(const Element* x, int n, Sum<Element>* sum, Sum<Element>* squares);
  // y = (x - mean) scale + bias + residual, or the maximum of that and 0 (NaN stays NaN); residual may be null
  void (*normalize)(const Element* x, const Element* residual, int n, Normalization<Sum<Element>> of, bool relu,
                    Element* y);
  // sums[0] = sum_k g[k], sums[1] = sum_k g[k] (x[k] - mean); to = g, unless it is null
  void (*norm_gradient_sums)(GatedGradient<Element> g, int n, Element* to, Sum<Element>* sums);
  void (*norm_gradient)(GatedGradient<Element> g, int n, NormGradient<Sum<Element>> coefficients, Element* d_x);
};

struct Kernels {
  KernelsOf<float> of_float;
  KernelsOf<BFloat16> of_bfloat16;
};

const Kernels& scalar_kernels();
const KernelsOf<double>& double_kernels();  // scalar: float64 is for checking gradients, not for speed
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#elif defined(__aarch64__)
const Kernels& neon_kernels();
#endif

}  // namespace sparseprune
