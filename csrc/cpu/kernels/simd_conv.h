// The kernels of convolutions over `Vec`, included by simd.h: the passes of linear layers (simd_linear.h) with
// other addresses.
#pragma once
#include "cpu/kernels/simd_linear.h"

// Vectors of a run that one pass over V rows of y keeps in registers: as many as fit, since every pass reads the
// weights and their offsets again.
template <int V>
constexpr int conv_vectors = Vec::template conv_vectors<V>;

template <class Scalar>
AtPixels positions_of(int first, int vectors, const Run<Scalar>& run) {
  AtPixels position{};
  for (int t = 0; run.data && t < vectors; ++t) {  // a run that is not wanted has no lanes to divide by
    const int number = first + t * Vec::lanes;
    position.at[t] = number / run.lanes * run.pixel_stride + number % run.lanes;
  }
  return position;
}

// Calls run(number of vectors, first number) for parts of n numbers of about equal size, at most T vectors each.
template <int T, class Call>
void for_even_parts(int n, Call call) {
  const int vectors = n / Vec::lanes, parts = (vectors + T - 1) / T;
  for (int part = 0, first = 0; part < parts; ++part) {
    const int end = (part + 1) * vectors / parts;
    const auto dispatch = [&]<int... t>(std::integer_sequence<int, t...>) {
      (void)((t + 1 == end - first ? (call(Int<t + 1>{}, first * Vec::lanes), true) : false) || ...);
    };
    dispatch(std::make_integer_sequence<int, T>{});
    first = end;
  }
}

template <int V>
void conv_rows(OffsetRows rows, int block_rows, const float* value, const float* x, int n,
               Epilogue<float> epilogue, Run<float> y) {
  for_even_parts<conv_vectors<V>>(n, [&](auto t, int first) {
    spmm_pass<float, V, t.value>(rows.start, rows.start + 1, rows.rows, block_rows, value, x + first,
                                 FromOffset{rows.offset}, epilogue, y.data, y.row_stride,
                                 positions_of(first, t.value, y));
  });
}

inline void conv(OffsetRows rows, int block_rows, const float* value, const float* x, int n,
                 Epilogue<float> epilogue, Run<float> y) {
  constexpr int most = Vec::most_block_rows;
  if (block_rows == 1) return conv_rows<1>(rows, block_rows, value, x, n, epilogue, y);
  if (block_rows == 2) return conv_rows<2>(rows, block_rows, value, x, n, epilogue, y);
  if (most >= 8 && block_rows == 4) return conv_rows<4>(rows, block_rows, value, x, n, epilogue, y);
  for (int v = 0; v < block_rows; v += most) {
    Run<float> below = y;
    below.data += v * y.row_stride;
    conv_rows<most>(rows, block_rows, value + v, x, n, epilogue.moved(v * y.row_stride, v), below);
  }
}

template <bool WithX, bool WithValue, bool Blocks>
void conv_gradient_parts(OffsetRows rows, int block_rows, const float* value, const float* g, int64_t g_stride,
                         int n, Run<const float> x, Run<float> d_x, float* d_value) {
  const RowsOfG<Blocks, FromOffset> rows_of_g{{rows.offset}, __builtin_ctz(block_rows), block_rows - 1, g_stride};
  for_even_parts<Vec::conv_gradient_vectors>(n, [&](auto t, int first) {
    gradients_pass<float, t.value, WithX, WithValue>(rows.start, rows.start + 1, rows.rows, rows_of_g, value,
                                                     g + first, x.data, x.row_stride,
                                                     positions_of(first, t.value, x), false, d_x.data,
                                                     d_x.row_stride, positions_of(first, t.value, d_x), d_value);
  });
}

inline void conv_gradients(OffsetRows rows, int block_rows, const float* value, const float* g, int64_t g_stride,
                           int n, Run<const float> x, Run<float> d_x, float* d_value) {
  for_wanted(value, d_value, [&](auto with_x, auto with_value) {
    const auto run = block_rows == 1 ? conv_gradient_parts<with_x.value, with_value.value, false>
                                     : conv_gradient_parts<with_x.value, with_value.value, true>;
    run(rows, block_rows, value, g, g_stride, n, x, d_x, d_value);
  });
}

// ---- layout ----

inline Vec load_numbers(const float* from) { return Vec::load(from); }
inline Vec load_numbers(const BFloat16* from) { return Vec::load_widened(from); }
inline void store_numbers(float* to, Vec v) { Vec::store(to, v); }
inline void store_numbers(BFloat16* to, Vec v) { Vec::store_low(to, Vec::round_halves(v), Vec::lanes); }

template <class Element>
void pack_pixels(Pixels<const Element> from, float* to, int lanes) {
  const int whole = from.samples / Vec::lanes * Vec::lanes;
  for (int p = 0; p < from.pixels; ++p, to += lanes) {
    const Element* pixel = from.data + p * from.pixel_stride;
    int b = 0;
    for (; b < whole; b += Vec::lanes) {
      __builtin_prefetch(pixel + from.ahead + b);
      Vec::store(to + b, load_numbers(pixel + b));
    }
    for (; b < from.samples; ++b) to[b] = widened(pixel[b]);
    for (; b < lanes; ++b) to[b] = 0;
  }
}

template <class Element>
void unpack_pixels(const float* from, int lanes, Pixels<Element> to) {
  const int whole = to.samples / Vec::lanes * Vec::lanes;
  for (int p = 0; p < to.pixels; ++p, from += lanes) {
    Element* pixel = to.data + p * to.pixel_stride;
    int b = 0;
    for (; b < whole; b += Vec::lanes) store_numbers(pixel + b, Vec::load(from + b));
    for (; b < to.samples; ++b) pixel[b] = rounded<Element>(from[b]);
  }
}
