// The two loops over all scores: counting them around a bracket, and writing masks. Scores are compared as
// integers in the order of the floats, so that -0.0 equals 0.0 and denormals count whatever the processor's
// flush-to-zero mode.
#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>
#include <cstring>
#include <limits>
#include <string_view>

#include "cpu/kernels/isa.h"

namespace sparseprune {

// Scores of a loop; their flags stay in the L1 cache.
constexpr int64_t TILE = 1024;

template <class Float>
struct Order;
template <>
struct Order<float> {
  using Key = int32_t;
};
template <>
struct Order<double> {
  using Key = int64_t;
};
template <class Float>
using KeyOf = typename Order<Float>::Key;

template <class Float>
constexpr KeyOf<Float> LARGEST = std::bit_cast<KeyOf<Float>>(std::numeric_limits<Float>::max());

template <class Float>
inline KeyOf<Float> magnitude_of(Float score) {
  return std::bit_cast<KeyOf<Float>>(score) & std::numeric_limits<KeyOf<Float>>::max();
}

// Sign and magnitude to two's complement: key(a) < key(b) exactly when a < b; both zeros have key 0.
template <class Float>
inline KeyOf<Float> key_of(Float score) {
  const KeyOf<Float> sign = std::bit_cast<KeyOf<Float>>(score) >> (8 * sizeof(Float) - 1);
  return (magnitude_of(score) ^ sign) - sign;
}

template <class Float>
struct TileCounts {
  KeyOf<Float> above = 0, at_hi = 0, at_lo = 0;
  KeyOf<Float> room = 0;  // negative once a magnitude was above the largest finite one
};

// The two loops over all scores. gcc vectorises them for whatever the function they are inlined into may use: on
// aarch64 always NEON, on x86-64 SSE2 or AVX2.
template <class Float>
[[gnu::always_inline]] inline TileCounts<Float> count_tile_loop(const Float* scores, int64_t size, KeyOf<Float> lo,
                                                                KeyOf<Float> hi, uint8_t* between) {
  TileCounts<Float> counts;
  for (int64_t i = 0; i < size; ++i) {
    const KeyOf<Float> key = key_of(scores[i]);
    counts.room |= LARGEST<Float> - magnitude_of(scores[i]);
    counts.above += key > hi;
    counts.at_hi += key == hi;
    counts.at_lo += key == lo;
    between[i] = (key > lo) & (key < hi);
  }
  return counts;
}

template <class Float>
[[gnu::always_inline]] inline void write_mask_loop(const Float* scores, bool* mask, int64_t size,
                                                   KeyOf<Float> bound) {
  for (int64_t i = 0; i < size; ++i) mask[i] = key_of(scores[i]) > bound;
}

template <class Float>
TileCounts<Float> count_tile_baseline(const Float* scores, int64_t size, KeyOf<Float> lo, KeyOf<Float> hi,
                                      uint8_t* between) {
  return count_tile_loop(scores, size, lo, hi, between);
}

template <class Float>
void write_mask_baseline(const Float* scores, bool* mask, int64_t size, KeyOf<Float> bound) {
  write_mask_loop(scores, mask, size, bound);
}

#if defined(__x86_64__)
// AVX-512 gains nothing over AVX2 here (both wait for memory), so it uses these too.
template <class Float>
[[gnu::target("avx2")]] TileCounts<Float> count_tile_avx2(const Float* scores, int64_t size, KeyOf<Float> lo,
                                                          KeyOf<Float> hi, uint8_t* between) {
  return count_tile_loop(scores, size, lo, hi, between);
}

template <class Float>
[[gnu::target("avx2")]] void write_mask_avx2(const Float* scores, bool* mask, int64_t size, KeyOf<Float> bound) {
  write_mask_loop(scores, mask, size, bound);
}
#endif

template <class Float>
struct Loops {
  TileCounts<Float> (*count_tile)(const Float*, int64_t, KeyOf<Float>, KeyOf<Float>, uint8_t*);
  void (*write_mask)(const Float*, bool*, int64_t, KeyOf<Float>);
};

template <class Float>
Loops<Float> current_loops() {
#if defined(__x86_64__)
  if (std::string_view(current_isa().name) != "scalar") return {count_tile_avx2<Float>, write_mask_avx2<Float>};
#endif
  return {count_tile_baseline<Float>, write_mask_baseline<Float>};
}

// Calls visit(i) for every i below size whose flag is set. Few are, so eight are looked at together; `flags` has
// room for whole words.
template <class Visit>
inline void for_flagged(uint8_t* flags, int64_t size, Visit visit) {
  static_assert(TILE % 8 == 0, "flags of a tile are read as 8-byte words");
  std::fill(flags + size, flags + (size + 7) / 8 * 8, uint8_t{0});
  for (int64_t i = 0; i < size; i += 8) {
    uint64_t word;
    std::memcpy(&word, flags + i, 8);
    if (word == 0) continue;
    for (int64_t j = i; j < std::min(i + 8, size); ++j) {
      if (flags[j]) visit(j);
    }
  }
}

// Where the i-th of m samples of n scores is: in one of m equal stretches. Where in its stretch varies (a multiple
// of the golden ratio), since rows and columns of a weight differ and a constant stride would see few of them.
inline int64_t position_of_sample(int64_t i, int64_t m, int64_t n) {
  const auto start = [&](int64_t stretch) { return n / m * stretch + n % m * stretch / m; };
  const uint64_t jitter = static_cast<uint32_t>(i) * 2654435769u;
  return start(i) + static_cast<int64_t>((jitter * (start(i + 1) - start(i))) >> 32);
}

}  // namespace sparseprune
