// NEON, which every 64-bit Arm processor has: no region of its own for its instructions.
#if defined(__aarch64__)
#include <arm_neon.h>

#include <type_traits>
#include <utility>

#include "cpu/kernels/kernels.h"

namespace sparseprune {
namespace {

struct Vec {
  float32x4_t v;

  static constexpr int lanes = 4;
  static constexpr int most_block_rows = 4;
  // More would fit into 32 registers, but gcc loads ahead and then has to put sums away.
  template <int V>
  static constexpr int spmm_vectors = V < 4 ? 8 : 4;  // at most 16 sums, 8 of x and a weight
  static constexpr int gradient_vectors = 4;          // 4 of x, 4 sums, 4 dot products, 4 of g, a weight
  static constexpr int sums_at_once = 4;
  template <int V>
  static constexpr int conv_vectors = spmm_vectors<V>;
  static constexpr int conv_gradient_vectors = 4;

  static Vec load(const float* p) { return {vld1q_f32(p)}; }
  static Vec load_partial(const float* p, int n) {
    float some[lanes] = {};
    copy(p, n, some);
    return load(some);
  }
  static void store(float* p, Vec a) { vst1q_f32(p, a.v); }
  static void store_partial(float* p, Vec a, int n) {
    float some[lanes];
    store(some, a);
    copy(some, n, p);
  }
  static Vec zero() { return {vdupq_n_f32(0)}; }
  static Vec broadcast(const float* p) { return {vld1q_dup_f32(p)}; }
  static Vec add(Vec a, Vec b) { return {vaddq_f32(a.v, b.v)}; }
  static Vec mul(Vec a, Vec b) { return {vmulq_f32(a.v, b.v)}; }
  static Vec fma(Vec a, Vec b, Vec c) { return {vfmaq_f32(c.v, a.v, b.v)}; }
  static Vec max(Vec a, Vec b) { return {vmaxq_f32(a.v, b.v)}; }  // NaN where one is NaN
  static Vec and_bits(Vec a, Vec b) { return from_bits(vandq_u32(a.bits(), b.bits())); }
  // All bits of a lane where not a <= 0.
  static Vec where_not_negative(Vec a) { return from_bits(vmvnq_u32(vclezq_f32(a.v))); }
  static Vec once(Vec a) {
    asm("" : "+w"(a.v));
    return a;
  }

  // ---- bfloat16: the upper half of a float ----

  // Elements 0, 2, 4, 6 and elements 1, 3, 5, 7: no more than a shift and a mask.
  static void load_pair(const BFloat16* p, Vec& even, Vec& odd) {
    const uint32x4_t both = once(load(reinterpret_cast<const float*>(p))).bits();
    even = from_bits(vshlq_n_u32(both, 16));
    odd = from_bits(vandq_u32(both, upper_halves()));
  }
  // The upper halves of odd above the lower halves of even.
  static Vec halves(Vec even, Vec odd) { return from_bits(vbslq_u32(upper_halves(), odd.bits(), even.bits())); }
  static Vec round_pair(Vec even, Vec odd) { return from_bits(vsriq_n_u32(round(odd), round(even), 16)); }
  static Vec round_halves(Vec a) { return from_bits(vshrq_n_u32(round(a), 16)); }
  static Vec load_widened(const float* p) { return load(p); }
  static Vec load_widened_partial(const float* p, int n) { return load_partial(p, n); }
  static Vec load_widened(const BFloat16* p) { return load_widened_partial(p, lanes); }
  static Vec load_widened_partial(const BFloat16* p, int n) {
    return from_bits(vshlq_n_u32(load_low(p, n).bits(), 16));
  }

  // n elements in the lower halves of lanes.
  static Vec load_low(const BFloat16* p, int n) {
    BFloat16 some[lanes] = {};
    if (n < lanes) {
      copy(p, n, some);
      p = some;
    }
    return from_bits(vmovl_u16(vld1_u16(&p->bits)));
  }
  static void store_low(BFloat16* p, Vec a, int n) {
    BFloat16 some[lanes];
    vst1_u16(n < lanes ? &some->bits : &p->bits, vmovn_u32(a.bits()));
    if (n < lanes) copy(some, n, p);
  }
  static Vec join(Vec low, Vec high) { return from_bits(vsliq_n_u32(low.bits(), high.bits(), 16)); }
  static Vec even_samples(Vec a) { return a; }  // store_low() takes no notice of upper halves
  static Vec odd_samples(Vec a) { return from_bits(vshrq_n_u32(a.bits(), 16)); }

  // ---- across lanes ----

  // Lane l: x[column[l / V]].
  template <int V>
  static Vec gather_blocks(const float* x, const uint16_t* column) {
    if constexpr (V >= lanes) return broadcast(x + *column);
    if constexpr (V == 2) return {vcombine_f32(vld1_dup_f32(x + column[0]), vld1_dup_f32(x + column[1]))};
    float32x4_t found = vld1q_dup_f32(x + column[0]);
    found = vld1q_lane_f32(x + column[1], found, 1);
    found = vld1q_lane_f32(x + column[2], found, 2);
    return {vld1q_lane_f32(x + column[3], found, 3)};
  }
  // The same for the first n blocks of V lanes, 0 in the others.
  template <int V>
  static Vec gather_some_blocks(const float* x, const uint16_t* column, int n) {
    float found[lanes];
#pragma GCC unroll 4
    for (int l = 0; l < lanes; ++l) found[l] = l < n * V ? x[column[l / V]] : 0.0f;
    return load(found);
  }

  // d[j] += the sum of all lanes of s[j], for j < n, which is 1, 2 or 4.
  template <int n>
  static void add_sums(const Vec* s, float* d) {
    if constexpr (n == 1) {
      *d += vaddvq_f32(s[0].v);
    } else if constexpr (n == 2) {
      const float32x4_t halves = vpaddq_f32(s[0].v, s[1].v);
      vst1_f32(d, vadd_f32(vld1_f32(d), vpadd_f32(vget_low_f32(halves), vget_high_f32(halves))));
    } else {
      static_assert(n == 4);
      const float32x4_t sums = vpaddq_f32(vpaddq_f32(s[0].v, s[1].v), vpaddq_f32(s[2].v, s[3].v));
      vst1q_f32(d, vaddq_f32(vld1q_f32(d), sums));
    }
  }

  // The 4 rows become the 4 columns.
  static void transpose(Vec* r) {
    const float32x4_t even01 = vtrn1q_f32(r[0].v, r[1].v), odd01 = vtrn2q_f32(r[0].v, r[1].v);
    const float32x4_t even23 = vtrn1q_f32(r[2].v, r[3].v), odd23 = vtrn2q_f32(r[2].v, r[3].v);
    r[0] = {vcombine_f32(vget_low_f32(even01), vget_low_f32(even23))};
    r[1] = {vcombine_f32(vget_low_f32(odd01), vget_low_f32(odd23))};
    r[2] = {vcombine_f32(vget_high_f32(even01), vget_high_f32(even23))};
    r[3] = {vcombine_f32(vget_high_f32(odd01), vget_high_f32(odd23))};
  }

 private:
  uint32x4_t bits() const { return vreinterpretq_u32_f32(v); }
  static Vec from_bits(uint32x4_t bits) { return {vreinterpretq_f32_u32(bits)}; }
  template <class T>
  static void copy(const T* from, int n, T* to) {
#pragma GCC unroll 4
    for (int i = 0; i < lanes; ++i)
      if (i < n) to[i] = from[i];
  }
  static uint32x4_t upper_halves() { return vdupq_n_u32(0xffff0000); }
  // To the nearest bfloat16 in the upper half, ties to even; NaN stays NaN.
  static uint32x4_t round(Vec a) {
    const uint32x4_t last = vandq_u32(vshrq_n_u32(a.bits(), 16), vdupq_n_u32(1));
    const uint32x4_t up = vaddq_u32(a.bits(), vaddq_u32(last, vdupq_n_u32(0x7fff)));
    const uint32x4_t quiet = vorrq_u32(a.bits(), vdupq_n_u32(0x400000));
    return vbslq_u32(vceqq_f32(a.v, a.v), up, quiet);
  }
};

#include "cpu/kernels/simd.h"

}  // namespace

const Kernels& neon_kernels() {
  static constexpr Kernels table{kernels<float>, kernels<BFloat16>};
  return table;
}

}  // namespace sparseprune
#endif
