// What one instruction set implements: loops over raw pointers, no torch, no threads, no allocation.
#pragma once
#include <cstdint>

namespace sparseprune {

// Activations are computed in panels of this many samples, batch innermost: element (feature f, sample b) of a
// panel lies at f * panel_width + b. 64 floats are 4 cache lines: wide enough that one weight and one offset are
// spread over 4 vectors of arithmetic, narrow enough that 128 to 256 features fit the L1 cache.
constexpr int panel_width = 64;

// A run of `segments` rows that all have `count` nonzeros in the column block at hand.
// Nonzero j of segment i is number i * count + j of `offset` and `value`.
struct Group {
  const int32_t* row;  // [segments] ascending
  int32_t segments;
  int32_t count;
  const int32_t* offset;  // element offset of the nonzero's column in the packed block
};

// A [features, batch] matrix of any strides (in elements).
template <class Scalar>
struct Strided {
  Scalar* data;
  int64_t feature_stride;
  int64_t batch_stride;
};

template <class Scalar>
struct KernelsOf {
  // panel[f, b] = x[f, b] for f < features, b < batch <= panel_width; zero up to the next multiple of 16 samples.
  // One of x's strides is 1.
  void (*pack)(Strided<const Scalar> x, int64_t features, int batch, Scalar* panel);
  // y[f, b] = panel[f, b]. One of y's strides is 1.
  void (*unpack)(const Scalar* panel, int64_t features, int batch, Strided<Scalar> y);
  // y[row, :] += sum_j value_j * x[column_j, :]                                    SpMM
  // `y` is the panel of row 0 of the group's numbering; samples up to `batch` rounded up to 16.
  void (*spmm)(const Group& group, const Scalar* value, int batch, const Scalar* x, Scalar* y);
  // d_value_j += sum_b x[row, b] * g[column_j, b]                                  SDDMM
  void (*sddmm)(const Group& group, int batch, const Scalar* g, const Scalar* x, Scalar* d_value);
  // Both of the above with one load of g: d_x[row, :] += sum_j value_j * g[column_j, :], and SDDMM.
  void (*spmm_sddmm)(const Group& group, const Scalar* value, int batch, const Scalar* g, const Scalar* x,
                     Scalar* d_x, Scalar* d_value);
};

struct Kernels : KernelsOf<float> {};

const Kernels& scalar_kernels();
const KernelsOf<double>& double_kernels();  // scalar: float64 is for checking gradients, not for speed
#if defined(__x86_64__)
const Kernels& avx2_kernels();
const Kernels& avx512_kernels();
#endif

}  // namespace sparseprune
