// The kernels over a vector type `Vec` of floats. An ISA file defines Vec, opens its `#pragma GCC target` region
// where it needs one, and then includes this file inside an anonymous namespace: everything here has internal
// linkage, so that no wide code ends up in a symbol that another ISA file shares. For the same reason it includes
// nothing but its own parts: simd_linear.h, simd_pack.h, simd_batch_norm.h and simd_conv.h.
//
// Vec: lanes, spmm_vectors<V> (vectors of a panel row that one pass over V rows of y keeps in registers),
//      most_block_rows (rows of y in one pass), gradient_vectors, sums_at_once (dot products reduced together),
//      load, store, load_partial, store_partial, load_pair, zero, broadcast, fma, mul, add, once,
//      max, and_bits, where_not_negative, halves, gather_blocks<V>, gather_some_blocks<V>, transpose, add_sums<n>,
//      join, even_samples, odd_samples, load_low, store_low, load_widened, load_widened_partial, round_pair.
#pragma once

#define UNROLL _Pragma("GCC unroll 16")
// Loops that are inlined into their callers lose registers to the callers' variables.
#define KERNEL __attribute__((noinline))

template <int n>
using Int = std::integral_constant<int, n>;

// T vectors at a time while they last, then fewer, always a multiple of Step: run(T, first sample).
template <int T, int Step, class Run>
inline void for_chunks(int vectors, int first, Run run) {
  for (; vectors >= T; vectors -= T, first += T * Vec::lanes) run(Int<T>{}, first);
  if constexpr (T > Step) for_chunks<T - Step, Step>(vectors, first, run);
}

// Vectors of floats that one load of a panel row yields.
template <class Element>
constexpr int vectors_per_load = sizeof(float) / sizeof(Element);

template <int T>
inline __attribute__((always_inline)) void load_row(const float* p, Vec* v) {
  UNROLL for (int t = 0; t < T; ++t) v[t] = Vec::load(p + t * Vec::lanes);
}

template <int T>
inline __attribute__((always_inline)) void load_row(const BFloat16* p, Vec* v) {
  UNROLL for (int t = 0; t < T; t += 2) Vec::load_pair(p + t * Vec::lanes, v[t], v[t + 1]);
}

// Where vector t of a row is: next to the one before, or where its pixel is.
struct Consecutive {
  int64_t operator()(int t) const { return int64_t(t) * Vec::lanes; }
};
struct AtPixels {
  int64_t at[8];
  int64_t operator()(int t) const { return at[t]; }
};

// The same where vectors need not follow one another (Consecutive, AtPixels).
template <int T, class Element, class Position>
inline __attribute__((always_inline)) void load_positions(const Element* p, Position position, Vec* v) {
  if constexpr (std::is_same_v<Position, Consecutive>)
    load_row<T>(p, v);
  else
    UNROLL for (int t = 0; t < T; ++t) v[t] = Vec::load(p + position(t));
}

#include "cpu/kernels/simd_batch_norm.h"
#include "cpu/kernels/simd_conv.h"
#include "cpu/kernels/simd_linear.h"
#include "cpu/kernels/simd_pack.h"

template <class Element>
constexpr KernelsOf<Element> kernels{pack<Element>,
                                     unpack<Element>,
                                     add_row_sums<Element>,
                                     spmm<Element>,
                                     spmv<Element>,
                                     gradients<Element>,
                                     conv,
                                     conv_gradients,
                                     pack_pixels<Element>,
                                     unpack_pixels<Element>,
                                     moments<Element>,
                                     normalize<Element>,
                                     norm_gradient_sums<Element>,
                                     norm_gradient<Element>};

#undef UNROLL
#undef KERNEL
