// The kernels of batch normalisation over `Vec`, included by simd.h.
//
// A mask of positive outputs that is computed again is the same to the last bit, since every number goes through
// the same multiply-add, the last ones of a channel in a part of a vector.
#pragma once

// Calls body(first, count, t) for the vectors of n numbers, t = 0 .. 3 in turn: sums into t do not wait for one
// another.
template <class Body>
void for_vectors(int n, Body body) {
  int k = 0;
  for (; k + 4 * Vec::lanes <= n; k += 4 * Vec::lanes)
    UNROLL for (int t = 0; t < 4; ++t) body(k + t * Vec::lanes, Vec::lanes, t);
  for (; k + Vec::lanes <= n; k += Vec::lanes) body(k, Vec::lanes, 0);
  if (k < n) body(k, n - k, 0);
}

// The first `count` numbers, 0 in the other lanes.
template <class Element>
Vec load_first(const Element* from, int count) {
  return count == Vec::lanes ? Vec::load_widened(from) : Vec::load_widened_partial(from, count);
}
inline void store_first(float* to, Vec v, int count) {
  count == Vec::lanes ? Vec::store(to, v) : Vec::store_partial(to, v, count);
}
inline void store_first(BFloat16* to, Vec v, int count) { Vec::store_low(to, Vec::round_halves(v), count); }

inline float sum_of(const Vec* parts) {
  Vec sums[Vec::sums_at_once];
  sums[0] = Vec::add(Vec::add(parts[0], parts[1]), Vec::add(parts[2], parts[3]));
  float sum = 0;
  Vec::add_sums<1>(sums, &sum);
  return sum;
}

template <class Element>
void moments(const Element* x, int n, float* sum, float* squares) {
  Vec sums[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
  Vec squared[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
  for_vectors(n, [&](int k, int count, int t) { sums[t] = Vec::add(sums[t], load_first(x + k, count)); });
  *sum = sum_of(sums);
  const float minus_mean = -*sum / float(n);
  const Vec shift = Vec::broadcast(&minus_mean);
  const int whole = n / Vec::lanes * Vec::lanes;  // other lanes of a part of a vector would deviate too
  for_vectors(whole, [&](int k, int count, int t) {
    const Vec deviation = Vec::add(load_first(x + k, count), shift);
    squared[t] = Vec::fma(deviation, deviation, squared[t]);
  });
  *squares = sum_of(squared);
  for (int k = whole; k < n; ++k) {
    const float deviation = widened(x[k]) + minus_mean;
    *squares += deviation * deviation;
  }
}

struct VecNormalization {
  Vec minus_mean, scale, bias;

  explicit VecNormalization(Normalization<float> of) {
    of.mean = -of.mean;
    minus_mean = Vec::broadcast(&of.mean);
    scale = Vec::broadcast(&of.scale);
    bias = Vec::broadcast(&of.bias);
  }
  Vec centered(Vec x) const { return Vec::add(x, minus_mean); }
  Vec operator()(Vec x) const { return Vec::fma(centered(x), scale, bias); }
};

template <bool WithResidual, bool Relu, class Element>
void normalize_as(const Element* x, const Element* residual, int n, Normalization<float> of, Element* y) {
  const VecNormalization normalized(of);
  for_vectors(n, [&](int k, int count, int) {
    Vec number = normalized(load_first(x + k, count));
    if constexpr (WithResidual) number = Vec::add(number, load_first(residual + k, count));
    if constexpr (Relu) number = Vec::max(Vec::zero(), number);
    store_first(y + k, number, count);
  });
}

template <class Element>
void normalize(const Element* x, const Element* residual, int n, Normalization<float> of, bool relu, Element* y) {
  const auto run = residual ? (relu ? normalize_as<true, true, Element> : normalize_as<true, false, Element>)
                            : (relu ? normalize_as<false, true, Element> : normalize_as<false, false, Element>);
  run(x, residual, n, of, y);
}

enum class GateOf { nothing, y, x };

template <GateOf gate, class Element>
Vec gated(const GatedGradient<Element>& g, const VecNormalization& normalized, Vec x, int k, int count) {
  const Vec number = load_first(g.g + k, count);
  if constexpr (gate == GateOf::y)
    return Vec::and_bits(number, Vec::where_not_negative(load_first(g.y + k, count)));
  else if constexpr (gate == GateOf::x)
    return Vec::and_bits(number, Vec::where_not_negative(normalized(x)));
  else
    return number;
}

// run(gate), a constant
template <class Element, class Run>
void for_gate(const GatedGradient<Element>& g, Run run) {
  using Gate = GateOf;
  if (g.y)
    run(std::integral_constant<Gate, Gate::y>{});
  else if (g.recompute)
    run(std::integral_constant<Gate, Gate::x>{});
  else
    run(std::integral_constant<Gate, Gate::nothing>{});
}

template <class Element>
void norm_gradient_sums(GatedGradient<Element> g, int n, Element* to, float* sums) {
  const VecNormalization normalized(g.of);
  for_gate(g, [&](auto gate) {
    Vec of_g[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
    Vec of_product[4] = {Vec::zero(), Vec::zero(), Vec::zero(), Vec::zero()};
    for_vectors(n, [&](int k, int count, int t) {
      const Vec x = load_first(g.x + k, count);
      const Vec number = gated<gate.value>(g, normalized, x, k, count);
      if (to) store_first(to + k, number, count);
      of_g[t] = Vec::add(of_g[t], number);
      of_product[t] = Vec::fma(number, normalized.centered(x), of_product[t]);
    });
    sums[0] = sum_of(of_g);
    sums[1] = sum_of(of_product);
  });
}

template <class Element>
void norm_gradient(GatedGradient<Element> g, int n, NormGradient<float> coefficients, Element* d_x) {
  const VecNormalization normalized(g.of);
  const Vec of_g = Vec::broadcast(&coefficients.of_g), of_x = Vec::broadcast(&coefficients.of_x),
            constant = Vec::broadcast(&coefficients.constant);
  for_gate(g, [&](auto gate) {
    for_vectors(n, [&](int k, int count, int) {
      const Vec x = load_first(g.x + k, count);
      const Vec rest = Vec::fma(of_x, normalized.centered(x), constant);
      store_first(d_x + k, Vec::fma(of_g, gated<gate.value>(g, normalized, x, k, count), rest), count);
    });
  });
}
