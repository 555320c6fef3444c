// The kernels over a vector type `Vec`. An ISA file defines Vec, opens its `#pragma GCC target` region and then
// includes this file inside an anonymous namespace: everything here has internal linkage, so that no wide code
// ends up in a symbol that another ISA file shares. Includes nothing for the same reason.
//
// Vec: lanes, chunk_spmm and chunk_sddmm (how many vectors of a panel row one pass keeps in registers),
//      load, store, add_to, zero, broadcast, fma, mul, load_partial, store_partial, transpose, add_sums<n>.

constexpr int max_spmm = Vec::chunk_spmm;
constexpr int max_sddmm = Vec::chunk_sddmm;
constexpr int sums_at_once = Vec::sums_at_once;
constexpr int prefetch_distance = 2;  // segments: rows come in order of count, which no hardware prefetcher sees
static_assert(panel_width % (Vec::lanes * max_spmm) == 0, "a panel row is a whole number of passes");
static_assert(panel_width % (Vec::lanes * max_sddmm) == 0, "a panel row is a whole number of passes");

#define UNROLL _Pragma("GCC unroll 16")

inline int vectors_of(int batch) { return (batch + 15) / 16 * (16 / Vec::lanes); }

template <int T>
inline void prefetch_row(const float* row) {
  UNROLL for (int t = 0; t < T * Vec::lanes; t += 16) __builtin_prefetch(row + t);
}

// ---- SpMM ----

// T vectors of every row; every segment has 8 * q + R nonzeros: the group shares one count, so no branch in the
// loop over its segments is ever mispredicted.
template <int T, int R>
void spmm_pass(const Group& group, const float* value, const float* x, float* y) {
  const int count = group.count;
  const int32_t* offset = group.offset;
  for (int i = 0; i < group.segments; ++i) {
    float* y_row = y + int64_t(group.row[i]) * panel_width;
    const int next = i + prefetch_distance < group.segments ? i + prefetch_distance : i;
    prefetch_row<T>(y + int64_t(group.row[next]) * panel_width);
    Vec sum[T];  // from zero: the rounding errors of a long row's segments do not accumulate one after another
    UNROLL for (int t = 0; t < T; ++t) sum[t] = Vec::zero();
    auto add = [&](int j) __attribute__((always_inline)) {
      const Vec w = Vec::broadcast(value + j);
      const float* x_row = x + offset[j];
      UNROLL for (int t = 0; t < T; ++t) sum[t] = Vec::fma(w, Vec::load(x_row + t * Vec::lanes), sum[t]);
    };
    for (int j = 0; j + 8 <= count; j += 8) UNROLL for (int u = 0; u < 8; ++u) add(j + u);
    UNROLL for (int u = 0; u < R; ++u) add(count - R + u);
    UNROLL for (int t = 0; t < T; ++t) Vec::add_to(y_row + t * Vec::lanes, sum[t]);
    value += count;
    offset += count;
  }
}

using SpmmPass = void (*)(const Group&, const float*, const float*, float*);

template <int T>
constexpr SpmmPass spmm_passes[8] = {spmm_pass<T, 0>, spmm_pass<T, 1>, spmm_pass<T, 2>, spmm_pass<T, 3>,
                                     spmm_pass<T, 4>, spmm_pass<T, 5>, spmm_pass<T, 6>, spmm_pass<T, 7>};

// T vectors at a time while they last, then fewer: `run(T, first sample)` with T a compile-time constant.
template <int T, class Run>
inline void for_chunks(int vectors, int first, Run run) {
  for (; vectors >= T; vectors -= T, first += T * Vec::lanes) run(Int<T>{}, first);
  if constexpr (T > 1) for_chunks<T - 1>(vectors, first, run);
}

void spmm(const Group& group, const float* value, int batch, const float* x, float* y) {
  for_chunks<max_spmm>(vectors_of(batch), 0, [&](auto t, int first) {
    spmm_passes<t.value>[group.count % 8](group, value, x + first, y + first);
  });
}

// ---- SDDMM, alone or with SpMM over the same g ----

// n nonzeros (at most sums_at_once) of one row: dot products with `x`, and with WithSpmm also sum += value * g.
template <int T, int n, bool WithSpmm>
inline __attribute__((always_inline)) void dot_products(const int32_t* offset, const float* value, const float* g,
                                                        const Vec* x, Vec* sum, float* d_value) {
  Vec dot[sums_at_once];
  UNROLL for (int j = 0; j < n; ++j) {
    const float* g_row = g + offset[j];
    const Vec w = WithSpmm ? Vec::broadcast(value + j) : Vec::zero();
    UNROLL for (int t = 0; t < T; ++t) {
      // once(): gcc would rather load g twice, as a memory operand of both products, but loads are the bottleneck.
      const Vec g_t = WithSpmm ? Vec::once(Vec::load(g_row + t * Vec::lanes)) : Vec::load(g_row + t * Vec::lanes);
      dot[j] = t == 0 ? Vec::mul(x[t], g_t) : Vec::fma(x[t], g_t, dot[j]);
      if constexpr (WithSpmm) sum[t] = Vec::fma(w, g_t, sum[t]);
    }
  }
  Vec::template add_sums<n>(dot, d_value);
}

template <int T, int R, bool WithSpmm>
void sddmm_pass(const Group& group, const float* value, const float* g, const float* x, float* d_x,
                float* d_value) {
  const int count = group.count;
  const int32_t* offset = group.offset;
  for (int i = 0; i < group.segments; ++i) {
    const int64_t row = int64_t(group.row[i]) * panel_width;
    const int next = i + prefetch_distance < group.segments ? i + prefetch_distance : i;
    const int64_t next_row = int64_t(group.row[next]) * panel_width;
    prefetch_row<T>(x + next_row);
    Vec x_row[T], sum[T];
    UNROLL for (int t = 0; t < T; ++t) x_row[t] = Vec::load(x + row + t * Vec::lanes);
    if constexpr (WithSpmm) {
      prefetch_row<T>(d_x + next_row);
      UNROLL for (int t = 0; t < T; ++t) sum[t] = Vec::zero();
    }
    for (int j = 0; j + sums_at_once <= count; j += sums_at_once)
      dot_products<T, sums_at_once, WithSpmm>(offset + j, value + j, g, x_row, sum, d_value + j);
    if constexpr (R > 0)
      dot_products<T, R, WithSpmm>(offset + count - R, value + count - R, g, x_row, sum, d_value + count - R);
    if constexpr (WithSpmm) UNROLL for (int t = 0; t < T; ++t) Vec::add_to(d_x + row + t * Vec::lanes, sum[t]);
    value += WithSpmm ? count : 0;
    offset += count;
    d_value += count;
  }
}

using SddmmPass = void (*)(const Group&, const float*, const float*, const float*, float*, float*);

template <int T, bool WithSpmm, class Remainders>
struct SddmmPasses;
template <int T, bool WithSpmm, int... R>
struct SddmmPasses<T, WithSpmm, std::integer_sequence<int, R...>> {
  static constexpr SddmmPass at[] = {sddmm_pass<T, R, WithSpmm>...};
};

template <bool WithSpmm>
void sddmm_chunks(const Group& group, const float* value, int batch, const float* g, const float* x, float* d_x,
                  float* d_value) {
  for_chunks<max_sddmm>(vectors_of(batch), 0, [&](auto t, int first) {
    using Passes = SddmmPasses<t.value, WithSpmm, std::make_integer_sequence<int, sums_at_once>>;
    Passes::at[group.count % sums_at_once](group, value, g + first, x + first, WithSpmm ? d_x + first : nullptr,
                                           d_value);
  });
}

void sddmm(const Group& group, int batch, const float* g, const float* x, float* d_value) {
  sddmm_chunks<false>(group, nullptr, batch, g, x, nullptr, d_value);
}

void spmm_sddmm(const Group& group, const float* value, int batch, const float* g, const float* x, float* d_x,
                float* d_value) {
  sddmm_chunks<true>(group, value, batch, g, x, d_x, d_value);
}

// ---- layout ----

void pack(Strided<const float> x, int64_t features, int batch, float* panel) {
  const int width = vectors_of(batch) * Vec::lanes;
  if (x.batch_stride == 1) {
    for (int64_t f = 0; f < features; ++f)
      for (int b = 0; b < width; b += Vec::lanes) {
        const int n = batch - b < Vec::lanes ? batch - b : Vec::lanes;
        const float* from = x.data + f * x.feature_stride + b;
        Vec::store(panel + f * panel_width + b, n <= 0            ? Vec::zero()
                                                : n == Vec::lanes ? Vec::load_unaligned(from)
                                                                  : Vec::load_partial(from, n));
      }
    return;
  }
  for (int b = 0; b < width; b += Vec::lanes)
    for (int64_t f = 0; f < features; f += Vec::lanes) {
      const int n = int(features - f < Vec::lanes ? features - f : Vec::lanes);
      Vec tile[Vec::lanes];
      UNROLL for (int i = 0; i < Vec::lanes; ++i) {
        const float* from = x.data + f + (b + i) * x.batch_stride;
        tile[i] = b + i >= batch    ? Vec::zero()
                  : n == Vec::lanes ? Vec::load_unaligned(from)
                                    : Vec::load_partial(from, n);
      }
      Vec::transpose(tile);
      float* to = panel + f * panel_width + b;
      if (n == Vec::lanes) {
        UNROLL for (int i = 0; i < Vec::lanes; ++i) Vec::store(to + i * panel_width, tile[i]);
      } else {
        for (int i = 0; i < n; ++i) Vec::store(to + i * panel_width, tile[i]);
      }
    }
}

void unpack(const float* panel, int64_t features, int batch, Strided<float> y) {
  if (y.batch_stride == 1) {
    for (int64_t f = 0; f < features; ++f)
      for (int b = 0; b < batch; b += Vec::lanes) {
        const Vec v = Vec::load(panel + f * panel_width + b);
        float* to = y.data + f * y.feature_stride + b;
        batch - b < Vec::lanes ? Vec::store_partial(to, v, batch - b) : Vec::store_unaligned(to, v);
      }
    return;
  }
  for (int b = 0; b < batch; b += Vec::lanes)
    for (int64_t f = 0; f < features; f += Vec::lanes) {
      const int n = int(features - f < Vec::lanes ? features - f : Vec::lanes);
      const int samples = batch - b < Vec::lanes ? batch - b : Vec::lanes;
      const float* from = panel + f * panel_width + b;
      Vec tile[Vec::lanes];
      UNROLL for (int i = 0; i < Vec::lanes; ++i) tile[i] =
          i < n ? Vec::load(from + i * panel_width) : Vec::zero();
      Vec::transpose(tile);
      float* to = y.data + f + b * y.batch_stride;
      if (n == Vec::lanes && samples == Vec::lanes) {
        UNROLL for (int i = 0; i < Vec::lanes; ++i) Vec::store_unaligned(to + i * y.batch_stride, tile[i]);
      } else {
        for (int i = 0; i < samples; ++i) Vec::store_partial(to + i * y.batch_stride, tile[i], n);
      }
    }
}

#undef UNROLL
