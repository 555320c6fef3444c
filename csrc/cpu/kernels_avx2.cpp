// AVX2 with FMA.
#if defined(__x86_64__)
#include <immintrin.h>

#include <type_traits>
#include <utility>

#include "kernels.h"

#pragma GCC push_options
#pragma GCC target("avx2,fma")

namespace sparseprune {
namespace {

template <int n>
using Int = std::integral_constant<int, n>;

struct Vec {
  __m256 v;

  static constexpr int lanes = 8;
  static constexpr int chunk_spmm = 8;    // a whole panel row: 8 sums + weight of 16 registers
  static constexpr int chunk_sddmm = 4;   // 4 of x, 4 sums, 4 dot products, weight, g: 14 of 16 registers
  static constexpr int sums_at_once = 4;  // dot products that are reduced together

  static Vec load(const float* p) { return {_mm256_load_ps(p)}; }
  static Vec load_unaligned(const float* p) { return {_mm256_loadu_ps(p)}; }
  static Vec load_partial(const float* p, int n) { return {_mm256_maskload_ps(p, first(n))}; }
  static void store(float* p, Vec a) { _mm256_store_ps(p, a.v); }
  static void add_to(float* p, Vec a) { _mm256_store_ps(p, _mm256_add_ps(_mm256_load_ps(p), a.v)); }
  static void store_unaligned(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
  static void store_partial(float* p, Vec a, int n) { _mm256_maskstore_ps(p, first(n), a.v); }
  static Vec zero() { return {_mm256_setzero_ps()}; }
  static Vec broadcast(const float* p) { return {_mm256_broadcast_ss(p)}; }
  static Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
  static Vec once(Vec a) {
    asm("" : "+x"(a.v));
    return a;
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
  static __m256 fold(__m256 a, __m256 b) {
    return _mm256_add_ps(_mm256_unpacklo_ps(a, b), _mm256_unpackhi_ps(a, b));
  }
};

#include "kernels_simd.h"

}  // namespace
}  // namespace sparseprune

#pragma GCC pop_options

namespace sparseprune {
const Kernels& avx2_kernels() {
  static constexpr Kernels table{{pack, unpack, spmm, sddmm, spmm_sddmm}};
  return table;
}
}  // namespace sparseprune
#endif
