// AVX-512 (F, DQ, BW, VL).
#if defined(__x86_64__)
#include <immintrin.h>

#include <type_traits>
#include <utility>

#include "cpu/kernels/kernels.h"

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,fma,avx2,bmi2"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,fma,avx2,bmi2")
#endif

namespace sparseprune {
namespace {

struct Vec {
  __m512 v;

  static constexpr int lanes = 16;
  static constexpr int most_block_rows = 8;
  template <int V>
  static constexpr int spmm_vectors = V < 8 ? 4 : 2;  // at most 16 sums, 4 of x and a weight of 32 registers
  static constexpr int gradient_vectors = 4;          // 4 of x, 4 sums, 8 dot products, 4 of g, a weight
  static constexpr int sums_at_once = 8;
  template <int V>
  static constexpr int conv_vectors = V < 4    ? 8
                                      : V == 4 ? 6
                                               : 3;  // at most 24 sums, 6 of x and a weight
  static constexpr int conv_gradient_vectors = 8;    // 8 of x, 8 sums, 8 dot products, g, a weight

  static Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
  static Vec load_partial(const float* p, int n) { return {_mm512_maskz_loadu_ps(first(n), p)}; }
  static void store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
  static void store_partial(float* p, Vec a, int n) { _mm512_mask_storeu_ps(p, first(n), a.v); }
  static Vec zero() { return {_mm512_setzero_ps()}; }
  static Vec broadcast(const float* p) { return {_mm512_set1_ps(*p)}; }
  static Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
  static Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }  // b where one is NaN
  static Vec and_bits(Vec a, Vec b) { return {_mm512_and_ps(a.v, b.v)}; }
  // All bits of a lane where not a <= 0.
  static Vec where_not_negative(Vec a) {
    return {_mm512_castsi512_ps(_mm512_movm_epi32(_mm512_cmp_ps_mask(a.v, _mm512_setzero_ps(), _CMP_NLE_UQ)))};
  }
  static Vec once(Vec a) {
    asm("" : "+v"(a.v));
    return a;
  }

  // ---- bfloat16: the upper half of a float ----

  // Elements 0, 2, 4 ... of 32 and elements 1, 3, 5 ...: no more than a shift and a mask.
  static void load_pair(const BFloat16* p, Vec& even, Vec& odd) {
    const __m512i both = _mm512_castps_si512(once(load(reinterpret_cast<const float*>(p))).v);
    even.v = _mm512_castsi512_ps(_mm512_slli_epi32(both, 16));
    odd.v = _mm512_castsi512_ps(_mm512_and_si512(both, upper_halves()));
  }
  // The upper halves of odd above the lower halves of even.
  static Vec halves(Vec even, Vec odd) {
    const __m512i bits =
        _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_castps_si512(even.v), _mm512_castps_si512(odd.v));
    return {_mm512_castsi512_ps(bits)};
  }
  static Vec round_pair(Vec even, Vec odd) {
    return {_mm512_castsi512_ps(
        _mm512_or_si512(_mm512_srli_epi32(round(even), 16), _mm512_and_si512(round(odd), upper_halves())))};
  }
  static Vec round_halves(Vec a) { return {_mm512_castsi512_ps(_mm512_srli_epi32(round(a), 16))}; }
  static Vec load_widened(const float* p) { return load(p); }
  static Vec load_widened_partial(const float* p, int n) { return load_partial(p, n); }
  static Vec load_widened(const BFloat16* p) { return load_widened_partial(p, lanes); }
  static Vec load_widened_partial(const BFloat16* p, int n) {
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(load_low(p, n).v), 16))};
  }

  // n elements in the lower halves of lanes.
  static Vec load_low(const BFloat16* p, int n) {
    return {_mm512_castsi512_ps(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first(n), p)))};
  }
  static void store_low(BFloat16* p, Vec a, int n) {
    _mm256_mask_storeu_epi16(p, first(n), _mm512_cvtepi32_epi16(_mm512_castps_si512(a.v)));
  }
  static Vec join(Vec low, Vec high) {
    return {_mm512_castsi512_ps(
        _mm512_or_si512(_mm512_castps_si512(low.v), _mm512_slli_epi32(_mm512_castps_si512(high.v), 16)))};
  }
  static Vec even_samples(Vec a) { return a; }  // store_low() takes no notice of upper halves
  static Vec odd_samples(Vec a) { return {_mm512_castsi512_ps(_mm512_srli_epi32(_mm512_castps_si512(a.v), 16))}; }

  // ---- across lanes ----

  // Lane l: x[column[l / V]].
  template <int V>
  static Vec gather_blocks(const float* x, const uint16_t* column) {
    if constexpr (V >= lanes)
      return broadcast(x + *column);
    else
      return {_mm512_i32gather_ps(columns_of_lanes<V>(column, lanes / V), x, 4)};
  }
  // The same for the first n blocks of V lanes, 0 in the others.
  template <int V>
  static Vec gather_some_blocks(const float* x, const uint16_t* column, int n) {
    return {_mm512_mask_i32gather_ps(_mm512_setzero_ps(), first(n * V), columns_of_lanes<V>(column, n), x, 4)};
  }

  // d[j] += the sum of all lanes of s[j], for j < n <= 8.
  template <int n>
  static void add_sums(Vec* s, float* d) {
#pragma GCC unroll 8
    for (int j = n; j < 8; ++j) s[j] = zero();
    const __m512 low = fold(fold(s[0].v, s[2].v), fold(s[1].v, s[3].v));
    const __m512 high = n > 4 ? fold(fold(s[4].v, s[6].v), fold(s[5].v, s[7].v)) : _mm512_setzero_ps();
    const __m512 both =
        _mm512_add_ps(_mm512_shuffle_f32x4(low, high, 0x88), _mm512_shuffle_f32x4(low, high, 0xdd));
    const __m256 a = _mm512_castps512_ps256(both), b = _mm512_extractf32x8_ps(both, 1);
    const __m128 sums03 = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    const __m128 sums47 = _mm_add_ps(_mm256_castps256_ps128(b), _mm256_extractf128_ps(b, 1));
    const __mmask8 keep = __mmask8((1u << n) - 1);
    const __m256 sums = _mm256_add_ps(_mm256_set_m128(sums47, sums03), _mm256_maskz_loadu_ps(keep, d));
    _mm256_mask_storeu_ps(d, keep, sums);
  }

  // The 16 rows become the 16 columns.
  static void transpose(Vec* r) {
    __m512 t[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
      t[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
      t[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
    }
    __m512 u[16];  // u[4 q + c]: column c of every 4 x 4 tile of rows 4 q .. 4 q + 3
#pragma GCC unroll 4
    for (int q = 0; q < 4; ++q) {
      u[4 * q + 0] = lower_pairs(t[4 * q], t[4 * q + 2]);
      u[4 * q + 1] = upper_pairs(t[4 * q], t[4 * q + 2]);
      u[4 * q + 2] = lower_pairs(t[4 * q + 1], t[4 * q + 3]);
      u[4 * q + 3] = upper_pairs(t[4 * q + 1], t[4 * q + 3]);
    }
#pragma GCC unroll 4
    for (int c = 0; c < 4; ++c) {
      const __m512 a02 = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x88),
                   a13 = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xdd);
      const __m512 b02 = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x88);
      const __m512 b13 = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xdd);
      r[c].v = _mm512_shuffle_f32x4(a02, b02, 0x88);
      r[4 + c].v = _mm512_shuffle_f32x4(a13, b13, 0x88);
      r[8 + c].v = _mm512_shuffle_f32x4(a02, b02, 0xdd);
      r[12 + c].v = _mm512_shuffle_f32x4(a13, b13, 0xdd);
    }
  }

 private:
  static __mmask16 first(int n) { return __mmask16((1u << n) - 1); }
  template <int V>
  static __m512i columns_of_lanes(const uint16_t* column, int n) {
    const __m512i index =
        _mm512_cvtepu16_epi32(n == lanes ? _mm256_loadu_si256(reinterpret_cast<const __m256i*>(column))
                                         : _mm256_maskz_loadu_epi16(first(n), column));
    if constexpr (V == 1) return index;
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_permutexvar_epi32(_mm512_srli_epi32(lane, __builtin_ctz(V)), index);
  }
  static __m512i upper_halves() { return _mm512_set1_epi32(int(0xffff0000)); }
  // To the nearest bfloat16 in the upper half, ties to even; NaN stays NaN.
  static __m512i round(Vec a) {
    const __m512i bits = _mm512_castps_si512(a.v);
    const __m512i last = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i up = _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
    const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x400000));
  }
  static __m512 fold(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  }
  static __m512 lower_pairs(__m512 a, __m512 b) {
    return _mm512_castpd_ps(_mm512_unpacklo_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
  }
  static __m512 upper_pairs(__m512 a, __m512 b) {
    return _mm512_castpd_ps(_mm512_unpackhi_pd(_mm512_castps_pd(a), _mm512_castps_pd(b)));
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
const Kernels& avx512_kernels() {
  static constexpr Kernels table{kernels<float>, kernels<BFloat16>};
  return table;
}
}  // namespace sparseprune
#endif
