// Packing over `Vec`, included by simd.h: activations of any layout into panels, and panels of sums back.
//
// A tile of lanes features x lanes samples (bfloat16: twice as many, two to a 32-bit lane) is transposed in
// registers. Rows of the tile come from samples b .. or go there; features f .. f + n of them exist.
#pragma once

inline Vec load_some(const float* from, int n) {
  return n == Vec::lanes ? Vec::load(from) : Vec::load_partial(from, n);
}
template <bool Gated>
inline Vec load_gated(const float* from, const float* gate, int n) {
  if constexpr (!Gated) return load_some(from, n);
  return Vec::and_bits(load_some(from, n), Vec::where_not_negative(load_some(gate, n)));
}
template <bool Gated>
inline Vec load_gated(const BFloat16* from, const BFloat16* gate, int n) {
  if constexpr (!Gated) return Vec::load_low(from, n);
  return Vec::and_bits(Vec::load_low(from, n), Vec::where_not_negative(Vec::load_widened_partial(gate, n)));
}

// Features of x (and of its gate) for sample b, or for samples b and b + 1; zero from sample `batch` on.
template <bool Gated>
inline Vec load_samples(Strided<const float> x, Strided<const float> gate, int64_t f, int b, int batch, int n) {
  return b < batch ? load_gated<Gated>(x.data + f + b * x.batch_stride, gate.data + f + b * gate.batch_stride, n)
                   : Vec::zero();
}
template <bool Gated>
inline Vec load_samples(Strided<const BFloat16> x, Strided<const BFloat16> gate, int64_t f, int b, int batch,
                        int n) {
  const auto load = [&](int b) {
    return b < batch ? load_gated<Gated>(x.data + f + b * x.batch_stride, gate.data + f + b * gate.batch_stride, n)
                     : Vec::zero();
  };
  return Vec::join(load(b), load(b + 1));
}

// A whole vector of samples of one feature.
template <bool Gated>
inline Vec load_inner(const float* from, const float* gate) {
  return load_gated<Gated>(from, gate, Vec::lanes);
}
template <bool Gated>
inline Vec load_inner(const BFloat16* from, const BFloat16* gate) {
  const Vec both = Vec::load(reinterpret_cast<const float*>(from));
  if constexpr (!Gated) return both;
  Vec even, odd;
  Vec::load_pair(gate, even, odd);
  return Vec::and_bits(both, Vec::halves(Vec::where_not_negative(even), Vec::where_not_negative(odd)));
}

inline void store_samples(float* to, int64_t, int, int n, Vec v) {
  n == Vec::lanes ? Vec::store(to, v) : Vec::store_partial(to, v, n);
}
inline void store_samples(BFloat16* to, int64_t batch_stride, int samples, int n, Vec v) {
  Vec::store_low(to, Vec::even_samples(v), n);
  if (samples > 1) Vec::store_low(to + batch_stride, Vec::odd_samples(v), n);
}

inline void store_tile_row(float* to, Vec v) { Vec::store(to, v); }
inline void store_tile_row(BFloat16* to, Vec v) { Vec::store(reinterpret_cast<float*>(to), v); }

// What the panel of sums holds for lanes samples of float, or for twice as many bfloat16 ones, as a tile row.
inline Vec load_tile_row(const float* from, const float*) { return Vec::load(from); }
inline Vec load_tile_row(const float* from, const BFloat16*) {
  return Vec::round_pair(Vec::load(from), Vec::load(from + Vec::lanes));
}

template <bool Gated, class Element>
void pack_panel(Strided<const Element> x, Strided<const Element> gate, int64_t features, int batch,
                Panel<Element> panel) {
  constexpr int per_lane = vectors_per_load<Element>, samples = per_lane * Vec::lanes;
  if (x.batch_stride == 1) {
    for (int64_t f = 0; f < features; ++f) {
      const Element* from = x.data + f * x.feature_stride;
      const Element* from_gate = gate.data + f * gate.feature_stride;
      Element* to = panel.data + f * panel.stride;
      int b = 0;
      for (; b + samples <= batch; b += samples)
        store_tile_row(to + b, load_inner<Gated>(from + b, from_gate + b));
      for (; b < batch; ++b) to[b] = Gated && widened(from_gate[b]) <= 0 ? Element{} : from[b];
      for (; b < panel.width; ++b) to[b] = Element{};
    }
    return;
  }
  for (int b = 0; b < panel.width; b += samples)
    for (int64_t f = 0; f < features; f += Vec::lanes) {
      const int n = int(features - f < Vec::lanes ? features - f : Vec::lanes);
      Vec tile[Vec::lanes];
      UNROLL for (int i = 0; i < Vec::lanes; ++i) tile[i] =
          load_samples<Gated>(x, gate, f, b + i * per_lane, batch, n);
      Vec::transpose(tile);
      Element* to = panel.data + f * panel.stride + b;
      if (n == Vec::lanes) {
        UNROLL for (int i = 0; i < Vec::lanes; ++i) store_tile_row(to + i * panel.stride, tile[i]);
      } else {
        for (int i = 0; i < n; ++i) store_tile_row(to + i * panel.stride, tile[i]);
      }
    }
}

template <class Element>
void pack(Strided<const Element> x, Strided<const Element> gate, int64_t features, int batch,
          Panel<Element> panel) {
  gate.data ? pack_panel<true>(x, gate, features, batch, panel) : pack_panel<false>(x, x, features, batch, panel);
}

template <class Element>
void unpack(Panel<const float> panel, int64_t features, int batch, Strided<Element> y) {
  constexpr int per_lane = vectors_per_load<Element>, samples = per_lane * Vec::lanes;
  if (y.batch_stride == 1) {
    for (int64_t f = 0; f < features; ++f) {
      const float* from = panel.data + f * panel.stride;
      Element* to = y.data + f * y.feature_stride;
      for (int b = 0; b < batch; b += samples) {
        const Vec v = load_tile_row(from + b, to);
        if (b + samples <= batch) {
          store_tile_row(to + b, v);
        } else {
          alignas(64) Element rest[samples];
          store_tile_row(rest, v);
          for (int i = 0; b + i < batch; ++i) to[b + i] = rest[i];
        }
      }
    }
    return;
  }
  for (int b = 0; b < batch; b += samples)
    for (int64_t f = 0; f < features; f += Vec::lanes) {
      const int n = int(features - f < Vec::lanes ? features - f : Vec::lanes);
      const float* from = panel.data + f * panel.stride + b;
      Vec tile[Vec::lanes];
      UNROLL for (int i = 0; i < Vec::lanes; ++i) tile[i] =
          i < n ? load_tile_row(from + i * panel.stride, y.data) : Vec::zero();
      Vec::transpose(tile);
      Element* to = y.data + f + b * y.batch_stride;
      if (n == Vec::lanes && batch - b >= samples) {
        UNROLL for (int i = 0; i < Vec::lanes; ++i)
            store_samples(to + i * per_lane * y.batch_stride, y.batch_stride, samples, Vec::lanes, tile[i]);
      } else {
        for (int i = 0; i < Vec::lanes && b + i * per_lane < batch; ++i)
          store_samples(to + i * per_lane * y.batch_stride, y.batch_stride, batch - b - i * per_lane, n, tile[i]);
      }
    }
}
