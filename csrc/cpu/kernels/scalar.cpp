// The kernels as plain loops: the statement of the algorithm, and what runs where there is neither AVX2 nor NEON.
#include <algorithm>

#include "cpu/kernels/kernels.h"

namespace sparseprune {
namespace {

template <class Element>
void pack(Strided<const Element> x, Strided<const Element> gate, int64_t features, int batch,
          Panel<Element> panel) {
  for (int64_t f = 0; f < features; ++f) {
    Element* to = panel.data + f * panel.stride;
    for (int b = 0; b < batch; ++b) {
      const bool zero = gate.data && widened(gate.data[f * gate.feature_stride + b * gate.batch_stride]) <= 0;
      to[b] = zero ? Element{} : x.data[f * x.feature_stride + b * x.batch_stride];
    }
    std::fill(to + batch, to + panel.width, Element{});
  }
}

template <class Element>
void unpack(Panel<const Sum<Element>> panel, int64_t features, int batch, Strided<Element> y) {
  for (int64_t f = 0; f < features; ++f)
    for (int b = 0; b < batch; ++b)
      y.data[f * y.feature_stride + b * y.batch_stride] = rounded<Element>(panel.data[f * panel.stride + b]);
}

template <class Element>
void add_row_sums(Panel<const Element> panel, int64_t features, Sum<Element>* sum) {
  for (int64_t f = 0; f < features; ++f)
    for (int b = 0; b < panel.width; ++b) sum[f] += widened(panel.data[f * panel.stride + b]);
}

// Samples are taken 16 at a time, a constant, so that compilers use whatever vectors the processor always has. In
// SpMM only a vector type keeps the sums out of memory (twice as fast); in SDDMM the plain loop is faster.
constexpr int lanes = 16;

template <class Scalar>
using Lanes [[gnu::vector_size(lanes * sizeof(Scalar)), gnu::may_alias]] = Scalar;

template <class Element>
void load_lanes(const Element* p, Lanes<Sum<Element>>& to) {
  for (int b = 0; b < lanes; ++b) to[b] = widened(p[b]);
}

// The sums of one row, to where they belong.
template <class Scalar>
void finish(const Lanes<Scalar>& sum, Epilogue<Scalar> epilogue, Scalar* y) {
  for (int b = 0; b < lanes; ++b) {
    Scalar total = sum[b] + (epilogue.add ? epilogue.add[b] : Scalar(0));
    if (epilogue.bias) total += *epilogue.bias;
    y[b] = epilogue.relu && total < 0 ? Scalar(0) : total;
  }
}

template <class Element>
void spmm(const Segments& segments, int block_rows, const Sum<Element>* value, Panel<const Element> x,
          Epilogue<Sum<Element>> epilogue, Panel<Sum<Element>> y) {
  using Scalar = Sum<Element>;
  for (int64_t i = 0; i < segments.rows; ++i)
    for (int64_t v = 0; v < block_rows; ++v) {
      const int64_t row = i * block_rows + v;
      for (int first = 0; first < x.width; first += lanes) {
        Lanes<Scalar> sum = {};
        for (int64_t j = segments.begin[i]; j < segments.end[i]; ++j) {
          Lanes<Scalar> x_row;
          load_lanes(x.data + segments.column[j] * x.stride + first, x_row);
          sum += value[j * block_rows + v] * x_row;
        }
        finish<Scalar>(sum, epilogue.moved(row * y.stride + first, row), y.data + row * y.stride + first);
      }
    }
}

template <class Element>
void spmv(const Segments& segments, ColumnBlocks blocks, int block_rows, const Element* value,
          const Sum<Element>* x, Sum<Element>* y) {
  for (int64_t i = 0; i < segments.rows; ++i) {
    Sum<Element> sum[16] = {};
    for (int64_t block = 0; block < blocks.count; ++block) {
      const int64_t at = i + block * blocks.rows_of_plan;
      for (int64_t j = segments.begin[at]; j < segments.end[at]; ++j)
        for (int64_t v = 0; v < block_rows; ++v)
          sum[v] += widened(value[j * block_rows + v]) * x[block * blocks.block_cols + segments.column[j]];
    }
    for (int64_t v = 0; v < block_rows; ++v) y[i * block_rows + v] += sum[v];
  }
}

template <class Element>
void spmm_t(const Segments& segments, int block_rows, const Sum<Element>* value, Panel<const Element> g, bool add,
            Panel<Sum<Element>> d_x) {
  using Scalar = Sum<Element>;
  for (int64_t i = 0; i < segments.rows; ++i)
    for (int first = 0; first < g.width; first += lanes) {
      Lanes<Scalar> sum = {};
      for (int64_t j = segments.begin[i]; j < segments.end[i]; ++j)
        for (int64_t v = 0; v < block_rows; ++v) {
          Lanes<Scalar> g_row;
          load_lanes(g.data + (segments.column[j] * int64_t(block_rows) + v) * g.stride + first, g_row);
          sum += value[j * block_rows + v] * g_row;
        }
      Scalar* out = d_x.data + i * d_x.stride + first;
      for (int b = 0; b < lanes; ++b) out[b] = sum[b] + (add ? out[b] : Scalar(0));
    }
}

template <class Element>
void sddmm(const Segments& segments, int block_rows, Panel<const Element> g, Panel<const Element> x,
           Sum<Element>* d_value) {
  for (int64_t i = 0; i < segments.rows; ++i) {
    const Element* x_row = x.data + i * x.stride;
    for (int64_t j = segments.begin[i]; j < segments.end[i]; ++j)
      for (int64_t v = 0; v < block_rows; ++v) {
        const Element* g_row = g.data + (segments.column[j] * int64_t(block_rows) + v) * g.stride;
        Sum<Element> sum[lanes] = {};
        for (int first = 0; first < g.width; first += lanes)
          for (int b = 0; b < lanes; ++b) sum[b] += widened(x_row[first + b]) * widened(g_row[first + b]);
        for (int half = lanes / 2; half > 0; half /= 2)
          for (int b = 0; b < half; ++b) sum[b] += sum[b + half];
        d_value[j * block_rows + v] += sum[0];
      }
  }
}

template <class Element>
void gradients(const Segments& segments, int block_rows, const Sum<Element>* value, Panel<const Element> g,
               Panel<const Element> x, bool add, Panel<Sum<Element>> d_x, Sum<Element>* d_value) {
  if (value) spmm_t<Element>(segments, block_rows, value, g, add, d_x);
  if (d_value) sddmm<Element>(segments, block_rows, g, x, d_value);
}

// ---- convolution ----

template <class Scalar>
int64_t place_of(const Run<Scalar>& run, int64_t row, int first) {
  return row * run.row_stride + first / run.lanes * run.pixel_stride + first % run.lanes;
}

template <class Scalar>
void conv(OffsetRows rows, int block_rows, const Scalar* value, const Scalar* x, int n, Epilogue<Scalar> epilogue,
          Run<Scalar> y) {
  for (int64_t i = 0; i < rows.rows; ++i)
    for (int64_t v = 0; v < block_rows; ++v)
      for (int first = 0; first < n; first += lanes) {
        Lanes<Scalar> sum = {};
        for (int64_t j = rows.start[i]; j < rows.start[i + 1]; ++j) {
          Lanes<Scalar> numbers;
          load_lanes(x + rows.offset[j] + first, numbers);
          sum += value[j * block_rows + v] * numbers;
        }
        const int64_t row = i * block_rows + v, at = place_of(y, row, first);
        finish<Scalar>(sum, epilogue.moved(at, row), y.data + at);
      }
}

template <class Scalar>
void conv_input_gradient(OffsetRows rows, int block_rows, const Scalar* value, const Scalar* g, int64_t g_stride,
                         int n, Run<Scalar> d_x) {
  for (int64_t i = 0; i < rows.rows; ++i)
    for (int first = 0; first < n; first += lanes) {
      Lanes<Scalar> sum = {};
      for (int64_t j = rows.start[i]; j < rows.start[i + 1]; ++j)
        for (int64_t v = 0; v < block_rows; ++v) {
          Lanes<Scalar> numbers;
          load_lanes(g + rows.offset[j] + v * g_stride + first, numbers);
          sum += value[j * block_rows + v] * numbers;
        }
      Scalar* out = d_x.data + place_of(d_x, i, first);
      for (int b = 0; b < lanes; ++b) out[b] = sum[b];
    }
}

template <class Scalar>
void conv_weight_gradient(OffsetRows rows, int block_rows, const Scalar* g, int64_t g_stride, int n,
                          Run<const Scalar> x, Scalar* d_value) {
  for (int64_t i = 0; i < rows.rows; ++i)
    for (int64_t j = rows.start[i]; j < rows.start[i + 1]; ++j)
      for (int64_t v = 0; v < block_rows; ++v) {
        const Scalar* numbers = g + rows.offset[j] + v * g_stride;
        Scalar sum[lanes] = {};
        for (int first = 0; first < n; first += lanes) {
          const Scalar* x_numbers = x.data + place_of(x, i, first);
          for (int b = 0; b < lanes; ++b) sum[b] += x_numbers[b] * numbers[first + b];
        }
        for (int half = lanes / 2; half > 0; half /= 2)
          for (int b = 0; b < half; ++b) sum[b] += sum[b + half];
        d_value[j * block_rows + v] += sum[0];
      }
}

template <class Scalar>
void conv_gradients(OffsetRows rows, int block_rows, const Scalar* value, const Scalar* g, int64_t g_stride, int n,
                    Run<const Scalar> x, Run<Scalar> d_x, Scalar* d_value) {
  if (value) conv_input_gradient<Scalar>(rows, block_rows, value, g, g_stride, n, d_x);
  if (d_value) conv_weight_gradient<Scalar>(rows, block_rows, g, g_stride, n, x, d_value);
}

template <class Element>
void pack_pixels(Pixels<const Element> from, Sum<Element>* to, int lanes) {
  for (int p = 0; p < from.pixels; ++p)
    for (int b = 0; b < lanes; ++b)
      to[p * lanes + b] = b < from.samples ? widened(from.data[p * from.pixel_stride + b]) : Sum<Element>(0);
}

template <class Element>
void unpack_pixels(const Sum<Element>* from, int lanes, Pixels<Element> to) {
  for (int p = 0; p < to.pixels; ++p)
    for (int b = 0; b < to.samples; ++b) to.data[p * to.pixel_stride + b] = rounded<Element>(from[p * lanes + b]);
}

// ---- batch normalisation ----

template <class Scalar>
Scalar sum_of_lanes(Scalar* sum) {
  for (int half = lanes / 2; half > 0; half /= 2)
    for (int b = 0; b < half; ++b) sum[b] += sum[b + half];
  return sum[0];
}

template <class Element>
void moments(const Element* x, int n, Sum<Element>* sum, Sum<Element>* squares) {
  Sum<Element> sums[lanes] = {}, squared[lanes] = {};
  for (int k = 0; k < n; ++k) sums[k % lanes] += widened(x[k]);
  *sum = sum_of_lanes(sums);
  const Sum<Element> mean = *sum / Sum<Element>(n);
  for (int k = 0; k < n; ++k) {
    const Sum<Element> deviation = widened(x[k]) - mean;
    squared[k % lanes] += deviation * deviation;
  }
  *squares = sum_of_lanes(squared);
}

template <class Scalar>
Scalar normalized(Scalar x, Normalization<Scalar> of) {
  return (x - of.mean) * of.scale + of.bias;
}

template <class Element>
void normalize(const Element* x, const Element* residual, int n, Normalization<Sum<Element>> of, bool relu,
               Element* y) {
  for (int k = 0; k < n; ++k) {
    Sum<Element> number = normalized<Sum<Element>>(widened(x[k]), of);
    if (residual) number += widened(residual[k]);
    y[k] = rounded<Element>(relu && number < 0 ? Sum<Element>(0) : number);
  }
}

template <class Element>
Element gated(const GatedGradient<Element>& g, int k) {
  const bool zero = g.y           ? widened(g.y[k]) <= 0
                    : g.recompute ? normalized<Sum<Element>>(widened(g.x[k]), g.of) <= 0
                                  : false;
  return zero ? Element{} : g.g[k];
}

template <class Element>
void norm_gradient_sums(GatedGradient<Element> g, int n, Element* to, Sum<Element>* sums) {
  Sum<Element> of_g[lanes] = {}, of_product[lanes] = {};
  for (int k = 0; k < n; ++k) {
    const Element number = gated(g, k);
    if (to) to[k] = number;
    of_g[k % lanes] += widened(number);
    of_product[k % lanes] += widened(number) * (widened(g.x[k]) - g.of.mean);
  }
  sums[0] = sum_of_lanes(of_g);
  sums[1] = sum_of_lanes(of_product);
}

template <class Element>
void norm_gradient(GatedGradient<Element> g, int n, NormGradient<Sum<Element>> coefficients, Element* d_x) {
  for (int k = 0; k < n; ++k)
    d_x[k] = rounded<Element>(coefficients.of_g * widened(gated(g, k)) +
                              (coefficients.of_x * (widened(g.x[k]) - g.of.mean) + coefficients.constant));
}

template <class Element>
constexpr KernelsOf<Element> kernels{pack<Element>,
                                     unpack<Element>,
                                     add_row_sums<Element>,
                                     spmm<Element>,
                                     spmv<Element>,
                                     gradients<Element>,
                                     conv<Sum<Element>>,
                                     conv_gradients<Sum<Element>>,
                                     pack_pixels<Element>,
                                     unpack_pixels<Element>,
                                     moments<Element>,
                                     normalize<Element>,
                                     norm_gradient_sums<Element>,
                                     norm_gradient<Element>};

}  // namespace

const Kernels& scalar_kernels() {
  static constexpr Kernels table{kernels<float>, kernels<BFloat16>};
  return table;
}

const KernelsOf<double>& double_kernels() { return kernels<double>; }

}  // namespace sparseprune
