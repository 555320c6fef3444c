// The kernels as plain loops: the statement of the algorithm, and what runs where there is no AVX2.
#include <algorithm>

#include "kernels.h"

namespace sparseprune {
namespace {

// The panel is padded with zeros to whole vectors of the widest instruction set, so that all sets see the same
// data.
constexpr int padded(int batch) { return (batch + 15) / 16 * 16; }

template <class Scalar>
void pack(Strided<const Scalar> x, int64_t features, int batch, Scalar* panel) {
  for (int64_t f = 0; f < features; ++f) {
    for (int b = 0; b < batch; ++b) panel[f * panel_width + b] = x.data[f * x.feature_stride + b * x.batch_stride];
    std::fill(panel + f * panel_width + batch, panel + f * panel_width + padded(batch), Scalar(0));
  }
}

template <class Scalar>
void unpack(const Scalar* panel, int64_t features, int batch, Strided<Scalar> y) {
  for (int64_t f = 0; f < features; ++f)
    for (int b = 0; b < batch; ++b) y.data[f * y.feature_stride + b * y.batch_stride] = panel[f * panel_width + b];
}

// Samples are taken 16 at a time, a constant, so that compilers use whatever vectors the processor always has. In
// SpMM only a vector type keeps the sums out of memory (twice as fast); in SDDMM the plain loop is faster.
constexpr int lanes = 16;

template <class Scalar>
using Lanes [[gnu::vector_size(lanes * sizeof(Scalar)), gnu::may_alias]] = Scalar;

template <class Scalar>
void spmm(const Group& group, const Scalar* value, int batch, const Scalar* x, Scalar* y) {
  for (int first = 0; first < batch; first += lanes)
    for (int64_t i = 0; i < group.segments; ++i) {
      Lanes<Scalar> sum = {};
      for (int64_t p = i * group.count; p < (i + 1) * group.count; ++p)
        sum += value[p] * *reinterpret_cast<const Lanes<Scalar>*>(x + group.offset[p] + first);
      Scalar* y_row = y + int64_t(group.row[i]) * panel_width + first;
      for (int b = 0; b < lanes; ++b) y_row[b] += sum[b];
    }
}

template <class Scalar>
void sddmm(const Group& group, int batch, const Scalar* g, const Scalar* x, Scalar* d_value) {
  for (int64_t i = 0; i < group.segments; ++i) {
    const Scalar* x_row = x + int64_t(group.row[i]) * panel_width;
    for (int64_t p = i * group.count; p < (i + 1) * group.count; ++p) {
      const Scalar* g_row = g + group.offset[p];
      Scalar sum[lanes] = {};
      for (int first = 0; first < batch; first += lanes)
        for (int b = 0; b < lanes; ++b) sum[b] += x_row[first + b] * g_row[first + b];
      for (int half = lanes / 2; half > 0; half /= 2)
        for (int b = 0; b < half; ++b) sum[b] += sum[b + half];
      d_value[p] += sum[0];
    }
  }
}

template <class Scalar>
void spmm_sddmm(const Group& group, const Scalar* value, int batch, const Scalar* g, const Scalar* x, Scalar* d_x,
                Scalar* d_value) {
  spmm(group, value, batch, g, d_x);
  sddmm(group, batch, g, x, d_value);
}

template <class Scalar>
constexpr KernelsOf<Scalar> kernels{pack<Scalar>, unpack<Scalar>, spmm<Scalar>, sddmm<Scalar>, spmm_sddmm<Scalar>};

}  // namespace

const Kernels& scalar_kernels() {
  static constexpr Kernels table{{kernels<float>}};
  return table;
}

const KernelsOf<double>& double_kernels() { return kernels<double>; }

}  // namespace sparseprune
