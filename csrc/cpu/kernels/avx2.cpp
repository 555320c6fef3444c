// AVX2 with FMA.
#if defined(__x86_64__)
#include <immintrin.h>

#include <type_traits>
#include <utility>

#include "cpu/kernels/kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,bmi2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,bmi2")
#endif

namespace sparseprune {
namespace {

struct Vec {
  __m256 v;

  static constexpr int lanes = 8;
  static constexpr int most_block_rows = 4;
  template <int V>
  static constexpr int spmm_vectors = 8 / V;  // 8 sums, 1 to 4 of x and a weight of 16 registers
  static constexpr int gradient_vectors = 4;  // 4 of x, 4 sums, 4 dot products, g, a weight
  static constexpr int sums_at_once = 4;
  template <int V>
  static constexpr int conv_vectors = 8 / V;
  static constexpr int conv_gradient_vectors = 4;

  static Vec load(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load_partial(const float* p, int n) { return {_mm256_maskload_ps(p, first(n))}; }
  static void store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
  static void store_partial(float* p, Vec a, int n) { _mm256_maskstore_ps(p, first(n), a.v); }
  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec broadcast(const float* p) { return {_mm256_broadcast_ss(p)}; }
  static Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
  static Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }  // b where one is NaN
  static Vec and_bits(Vec a, Vec b) { return {_mm256_and_ps(a.v, b.v)}; }
  // All bits of a lane where not a <= 0.
  static Vec where_not_negative(Vec a) { return {_mm256_cmp_ps(a.v, _mm256_setzero_ps(), _CMP_NLE_UQ)}; }
  static Vec once(Vec a) {
    asm("" : "+x"(a.v));
    return a;
  }

  // ---- bfloat16: the upper half of a float ----

  // Elements 0, 2, 4 ... of 16 and elements 1, 3, 5 ...: no more than a shift and a mask.
  static void load_pair(const BFloat16* p, Vec& even, Vec& odd) {
    const __m256i both = _mm256_castps_si256(once(load(reinterpret_cast<const float*>(p))).v);
    even.v = _mm256_castsi256_ps(_mm256_slli_epi32(both, 16));
    odd.v = _mm256_castsi256_ps(_mm256_and_si256(both, upper_halves()));
  }
  // The upper halves of odd above the lower halves of even.
  static Vec halves(Vec even, Vec odd) {
    return {
        _mm256_castsi256_ps(_mm256_blend_epi16(_mm256_castps_si256(even.v), _mm256_castps_si256(odd.v), 0xaa))};
  }
  static Vec round_pair(Vec even, Vec odd) {
    return {_mm256_castsi256_ps(
        _mm256_or_si256(_mm256_srli_epi32(round(even), 16), _mm256_and_si256(round(odd), upper_halves())))};
  }
  static Vec round_halves(Vec a) { return {_mm256_castsi256_ps(_mm256_srli_epi32(round(a), 16))}; }
  static Vec load_widened(const float* p) { return load(p); }
  static Vec load_widened_partial(const float* p, int n) { return load_partial(p, n); }
  static Vec load_widened(const BFloat16* p) { return load_widened_partial(p, lanes); }
  static Vec load_widened_partial(const BFloat16* p, int n) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(load_low(p, n).v), 16))};
  }

  // n elements in the lower halves of lanes.
  static Vec load_low(const BFloat16* p, int n) {
    BFloat16 some[lanes] = {};
    if (n < lanes) {
      for (int i = 0; i < lanes; ++i)
        if (i < n) some[i] = p[i];
      p = some;
    }
    return {_mm256_castsi256_ps(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
  }
  static void store_low(BFloat16* p, Vec a, int n) {
    const __m256i low = _mm256_and_si256(_mm256_castps_si256(a.v), _mm256_set1_epi32(0xffff));
    const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
    BFloat16 some[lanes];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(n < lanes ? some : p), _mm256_castsi256_si128(packed));
    if (n < lanes)
      for (int i = 0; i < lanes; ++i)
        if (i < n) p[i] = some[i];
  }
  static Vec join(Vec low, Vec high) {
    return {_mm256_castsi256_ps(
        _mm256_or_si256(_mm256_castps_si256(low.v), _mm256_slli_epi32(_mm256_castps_si256(high.v), 16)))};
  }
  static Vec even_samples(Vec a) { return a; }  // store_low() takes no notice of upper halves
  static Vec odd_samples(Vec a) { return {_mm256_castsi256_ps(_mm256_srli_epi32(_mm256_castps_si256(a.v), 16))}; }

  // ---- across lanes ----

  // Lane l: x[column[l / V]].
  template <int V>
  static Vec gather_blocks(const float* x, const uint16_t* column) {
    if constexpr (V >= lanes)
      return broadcast(x + *column);
    else
      return gather_some_blocks<V>(x, column, lanes / V);
  }
  // The same for the first n blocks of V lanes, 0 in the others.
  template <int V>
  static Vec gather_some_blocks(const float* x, const uint16_t* column, int n) {
    float found[lanes];
#pragma GCC unroll 8
    for (int l = 0; l < lanes; ++l) found[l] = l < n * V ? x[column[l / V]] : 0.0f;
    return load(found);
  }

  // d[j] += the sum of all lanes of s[j], for j < n <= 4.
  template <int n>
  static void add_sums(Vec* s, float* d) {
#pragma GCC unroll 4
    for (int j = n; j < 4; ++j) s[j] = zero();
    const __m256 halves = fold(fold(s[0].v, s[2].v), fold(s[1].v, s[3].v));
    const __m128 sums = _mm_add_ps(_mm256_castps256_ps128(halves), _mm256_extractf128_ps(halves, 1));
    const __m128i keep = _mm_cmpgt_epi32(_mm_set1_epi32(n), _mm_setr_epi32(0, 1, 2, 3));
    _mm_maskstore_ps(d, keep, _mm_add_ps(sums, _mm_maskload_ps(d, keep)));
  }

  // The 8 rows become the 8 columns.
  static void transpose(Vec* r) {
    __m256 t[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 2) {
      t[i] = _mm256_unpacklo_ps(r[i].v, r[i + 1].v);
      t[i + 1] = _mm256_unpackhi_ps(r[i].v, r[i + 1].v);
    }
    __m256 u[8];  // u[4 q + c]: column c of both 4 x 4 tiles of rows 4 q .. 4 q + 3
#pragma GCC unroll 2
    for (int q = 0; q < 2; ++q) {
      u[4 * q + 0] = _mm256_shuffle_ps(t[4 * q], t[4 * q + 2], 0x44);
      u[4 * q + 1] = _mm256_shuffle_ps(t[4 * q], t[4 * q + 2], 0xee);
      u[4 * q + 2] = _mm256_shuffle_ps(t[4 * q + 1], t[4 * q + 3], 0x44);
      u[4 * q + 3] = _mm256_shuffle_ps(t[4 * q + 1], t[4 * q + 3], 0xee);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      r[c].v = _mm256_permute2f128_ps(u[c], u[4 + c], 0x20);
      r[4 + c].v = _mm256_permute2f128_ps(u[c], u[4 + c], 0x31);
    }
  }

 private:
  static __m256i first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static __m256i upper_halves() { return _mm256_set1_epi32(int(0xffff0000)); }
  // To the nearest bfloat16 in the upper half, ties to even; NaN stays NaN.
  static __m256i round(Vec a) {
    const __m256i bits = _mm256_castps_si256(a.v);
    const __m256i last = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i up = _mm256_add_epi32(bits, _mm256_add_epi32(last, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
    return _mm256_blendv_epi8(up, quiet, nan);
  }
  static __m256 fold(__m256 a, __m256 b) {
    return _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  }
};

#include "cpu/kernels/simd.h"

}  // namespace
}  // namespace sparseprune

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace sparseprune {
const Kernels& avx2_kernels() {
  static constexpr Kernels table{kernels<float>, kernels<BFloat16>};
  return table;
}
}  // namespace sparseprune
#endif
