// The kernels of linear layers over `Vec`, included by simd.h: SpMM, SpMV for one sample, and the gradients. Their
// passes serve convolutions too (simd_conv.h), with other addresses.
#pragma once

// ---- SpMM ----

// Where nonzero j's row of x starts: a linear layer's from its column, a convolution's from a table.
struct FromColumn {
  const uint16_t* column;
  int64_t stride;
  int64_t operator()(int64_t j) const { return column[j] * stride; }
};
struct FromOffset {
  const int32_t* offset;
  int64_t operator()(int64_t j) const { return offset[j]; }
};

// V rows of y, T vectors each. A chain of FMAs on one register would wait for its own results: where V x T is
// small, consecutive nonzeros go to different sums.
template <class Element, int V, int T, class Source, class Position>
KERNEL void spmm_pass(const int32_t* begin_of, const int32_t* end_of, int32_t rows, int block_rows,
                      const float* value, const Element* x, Source source, Epilogue<float> epilogue, float* y,
                      int64_t y_stride, Position position) {
  constexpr int sets = V * T >= 8 ? 1 : 8 / (V * T);
  constexpr int unrolled = V == 1 ? 4 : 2;
  constexpr int steps = sets > unrolled ? sets : unrolled;
  for (int32_t i = 0; i < rows; ++i) {
    Vec sum[sets][V][T];
    UNROLL for (int s = 0; s < sets; ++s) UNROLL for (int v = 0; v < V; ++v) UNROLL for (int t = 0; t < T; ++t)
        sum[s][v][t] = Vec::zero();
    const auto multiply = [&](int64_t j, int set) __attribute__((always_inline)) {
      Vec x_row[T];
      load_row<T>(x + source(j), x_row);
      // once(): gcc would rather load x again, as a memory operand, for each of the V rows.
      if constexpr (V > 1) UNROLL for (int t = 0; t < T; ++t) x_row[t] = Vec::once(x_row[t]);
      UNROLL for (int v = 0; v < V; ++v) {
        const Vec w = Vec::broadcast(value + j * block_rows + v);
        UNROLL for (int t = 0; t < T; ++t) sum[set][v][t] = Vec::fma(w, x_row[t], sum[set][v][t]);
      }
    };
    float* y_rows = y + int64_t(i) * block_rows * y_stride;
    const float* added = epilogue.moved(int64_t(i) * block_rows * y_stride).add;
    if constexpr (std::is_same_v<Position, AtPixels>)
      UNROLL for (int v = 0; v < V; ++v) UNROLL for (int t = 0; t < T; ++t)
          __builtin_prefetch(y_rows + v * y_stride + position(t), 1);
    int64_t j = begin_of[i];
    const int64_t end = end_of[i];
    for (; j + steps <= end; j += steps) UNROLL for (int s = 0; s < steps; ++s) multiply(j + s, s % sets);
    for (; j < end; ++j) multiply(j, 0);
    UNROLL for (int v = 0; v < V; ++v) UNROLL for (int t = 0; t < T; ++t) {
      float* out = y_rows + v * y_stride + position(t);
      Vec total = sum[0][v][t];
      UNROLL for (int s = 1; s < sets; ++s) total = Vec::add(total, sum[s][v][t]);
      if (epilogue.add) total = Vec::add(total, Vec::load(added + v * y_stride + position(t)));
      if (epilogue.bias) total = Vec::add(total, Vec::broadcast(epilogue.bias + int64_t(i) * block_rows + v));
      if (epilogue.relu) total = Vec::max(Vec::zero(), total);
      Vec::store(out, total);
    }
  }
}

template <class Element, int V>
void spmm_rows(const Segments& segments, int block_rows, const float* value, Panel<const Element> x,
               Epilogue<float> epilogue, Panel<float> y) {
  constexpr int step = vectors_per_load<Element>;
  for_chunks<Vec::spmm_vectors<V>, step>(x.width / Vec::lanes, 0, [&](auto t, int first) {
    spmm_pass<Element, V, t.value>(segments.begin, segments.end, segments.rows, block_rows, value, x.data + first,
                                   FromColumn{segments.column, x.stride}, epilogue.moved(first), y.data + first,
                                   y.stride, Consecutive{});
  });
}

template <class Element>
void spmm(const Segments& segments, int block_rows, const float* value, Panel<const Element> x,
          Epilogue<float> epilogue, Panel<float> y) {
  constexpr int most = Vec::most_block_rows;
  if (block_rows == 1) return spmm_rows<Element, 1>(segments, block_rows, value, x, epilogue, y);
  if (block_rows == 2) return spmm_rows<Element, 2>(segments, block_rows, value, x, epilogue, y);
  if (most >= 8 && block_rows == 4) return spmm_rows<Element, 4>(segments, block_rows, value, x, epilogue, y);
  for (int v = 0; v < block_rows; v += most) {
    spmm_rows<Element, most>(segments, block_rows, value + v, x, epilogue.moved(v * y.stride, v),
                             {y.data + v * y.stride, y.stride, y.width});
  }
}

// ---- SpMV: one sample, vectors along the nonzeros ----

template <class Element, int V>
KERNEL void spmv_rows(const Segments& segments, ColumnBlocks blocks, const Element* value, const float* x,
                      float* y) {
  constexpr int per_vector = V >= Vec::lanes ? 1 : Vec::lanes / V;  // nonzeros that one vector of values covers
  constexpr int vectors = V >= Vec::lanes ? V / Vec::lanes : 1;
  constexpr int ahead = 4096 / sizeof(Element);  // values to prefetch: gathers keep hardware from running ahead
  const uint16_t* column = segments.column;
  for (int32_t i = 0; i < segments.rows; ++i) {
    Vec sum[2][vectors];
    UNROLL for (int s = 0; s < 2; ++s) UNROLL for (int t = 0; t < vectors; ++t) sum[s][t] = Vec::zero();
    for (int32_t block = 0; block < blocks.count; ++block) {
      const float* x_block = x + block * blocks.block_cols;
      int64_t j = segments.begin[i + block * blocks.rows_of_plan];
      const int64_t end = segments.end[i + block * blocks.rows_of_plan];
      const auto multiply = [&](int64_t j, int set) __attribute__((always_inline)) {
        const Vec x_of_lane = Vec::template gather_blocks<V>(x_block, column + j);
        UNROLL for (int t = 0; t < vectors; ++t) sum[set][t] =
            Vec::fma(Vec::load_widened(value + j * V + t * Vec::lanes), x_of_lane, sum[set][t]);
      };
      for (; j + 2 * per_vector <= end; j += 2 * per_vector) {
        __builtin_prefetch(value + j * V + ahead);
        if constexpr (V < 8) __builtin_prefetch(column + j + ahead / V);
        multiply(j, 0);
        multiply(j + per_vector, 1);
      }
      if (j + per_vector <= end) {
        multiply(j, 0);
        j += per_vector;
      }
      if (j < end) {
        const int n = int(end - j);
        const Vec x_of_lane = Vec::template gather_some_blocks<V>(x_block, column + j, n);
        sum[1][0] = Vec::fma(Vec::load_widened_partial(value + j * V, n * V), x_of_lane, sum[1][0]);
      }
    }
    float lane[vectors * Vec::lanes];
    UNROLL for (int t = 0; t < vectors; ++t) Vec::store(lane + t * Vec::lanes, Vec::add(sum[0][t], sum[1][t]));
    for (int step = vectors * Vec::lanes / 2; step >= V; step /= 2)
      for (int l = 0; l < step; ++l) lane[l] += lane[l + step];
    for (int v = 0; v < V; ++v) y[int64_t(i) * V + v] += lane[v];
  }
}

template <class Element>
void spmv(const Segments& segments, ColumnBlocks blocks, int block_rows, const Element* value, const float* x,
          float* y) {
  switch (block_rows) {
    case 1:
      return spmv_rows<Element, 1>(segments, blocks, value, x, y);
    case 2:
      return spmv_rows<Element, 2>(segments, blocks, value, x, y);
    case 4:
      return spmv_rows<Element, 4>(segments, blocks, value, x, y);
    case 8:
      return spmv_rows<Element, 8>(segments, blocks, value, x, y);
    default:
      return spmv_rows<Element, 16>(segments, blocks, value, x, y);
  }
}

// ---- gradients: SpMM over the transposed pattern, SDDMM, or both with one load of g ----

// Where the rows of g are that belong to the values of a transposed pattern: value k belongs to nonzero k / V and
// to row k % V of its block. V = 1 is worth code of its own.
template <bool Blocks, class Source>
struct RowsOfG {
  Source source;
  int shift, mask;  // V = 1 << shift = mask + 1
  int64_t stride;   // between the rows of a block

  int64_t at(int64_t k) const {
    if constexpr (!Blocks) return source(k);
    return source(k >> shift) + (k & mask) * stride;
  }
};

// n values (at most sums_at_once) of one row: dot products with `x`, and sum += value * g.
template <class Element, int T, int n, bool WithX, bool WithValue, class Rows>
inline __attribute__((always_inline)) void add_products(const Rows& rows, int64_t k, const float* value,
                                                        const Element* g, const Vec* x, Vec* sum, float* d_value) {
  Vec dot[Vec::sums_at_once];
  UNROLL for (int j = 0; j < n; ++j) {
    Vec g_row[T];
    load_row<T>(g + rows.at(k + j), g_row);
    const Vec w = WithX ? Vec::broadcast(value + k + j) : Vec::zero();
    UNROLL for (int t = 0; t < T; ++t) {
      // once(): gcc would rather load g twice, as a memory operand of both products, but loads are the bottleneck.
      if constexpr (WithX && WithValue) g_row[t] = Vec::once(g_row[t]);
      if constexpr (WithValue) dot[j] = t == 0 ? Vec::mul(x[t], g_row[t]) : Vec::fma(x[t], g_row[t], dot[j]);
      if constexpr (WithX) sum[t] = Vec::fma(w, g_row[t], sum[t]);
    }
  }
  if constexpr (WithValue) Vec::template add_sums<n>(dot, d_value + k);
}

template <class Element, int T, bool WithX, bool WithValue, bool Blocks, class Source, class Position>
KERNEL void gradients_pass(const int32_t* begin_of, const int32_t* end_of, int32_t row_count,
                           RowsOfG<Blocks, Source> rows, const float* value, const Element* g, const Element* x,
                           int64_t x_stride, Position x_position, bool add, float* d_x, int64_t d_x_stride,
                           Position d_x_position, float* d_value) {
  constexpr int most = Vec::sums_at_once;
  const int shift = Blocks ? rows.shift : 0;
  for (int32_t i = 0; i < row_count; ++i) {
    Vec x_row[T], sum[T];
    if constexpr (WithValue) load_positions<T>(x + i * x_stride, x_position, x_row);
    UNROLL for (int t = 0; t < T; ++t) sum[t] = Vec::zero();
    if constexpr (std::is_same_v<Position, AtPixels>) UNROLL for (int t = 0; t < T; ++t) {
        if constexpr (WithValue) __builtin_prefetch(x + (i + 1) * x_stride + x_position(t));
        if constexpr (WithX) __builtin_prefetch(d_x + i * d_x_stride + d_x_position(t), 1);
      }
    const auto add_n = [&](auto n, int64_t k) __attribute__((always_inline)) {
      add_products<Element, T, n.value, WithX, WithValue>(rows, k, value, g, x_row, sum, d_value);
    };
    int64_t k = int64_t(begin_of[i]) << shift;
    const int64_t end = int64_t(end_of[i]) << shift;
    for (; k + most <= end; k += most) add_n(Int<most>{}, k);
    if constexpr (most > 4)
      if ((end - k) & 4) add_n(Int<4>{}, k), k += 4;
    if ((end - k) & 2) add_n(Int<2>{}, k), k += 2;
    if ((end - k) & 1) add_n(Int<1>{}, k);
    if constexpr (WithX) UNROLL for (int t = 0; t < T; ++t) {
        float* out = d_x + i * d_x_stride + d_x_position(t);
        Vec::store(out, add ? Vec::add(sum[t], Vec::load(out)) : sum[t]);
      }
  }
}

// run(whether d_x is wanted, whether d_value is)
template <class Run>
void for_wanted(bool with_x, bool with_value, Run run) {
  if (with_x && with_value)
    run(std::true_type{}, std::true_type{});
  else if (with_x)
    run(std::true_type{}, std::false_type{});
  else
    run(std::false_type{}, std::true_type{});
}

template <class Element, bool WithX, bool WithValue, bool Blocks>
void gradients_chunks(const Segments& segments, int block_rows, const float* value, Panel<const Element> g,
                      Panel<const Element> x, bool add, Panel<float> d_x, float* d_value) {
  constexpr int step = vectors_per_load<Element>;
  const RowsOfG<Blocks, FromColumn> rows{
      {segments.column, g.stride * block_rows}, __builtin_ctz(block_rows), block_rows - 1, g.stride};
  for_chunks<Vec::gradient_vectors, step>(g.width / Vec::lanes, 0, [&](auto t, int first) {
    gradients_pass<Element, t.value, WithX, WithValue>(
        segments.begin, segments.end, segments.rows, rows, value, g.data + first,
        WithValue ? x.data + first : nullptr, x.stride, Consecutive{}, add, WithX ? d_x.data + first : nullptr,
        d_x.stride, Consecutive{}, d_value);
  });
}

template <class Element>
void gradients(const Segments& segments, int block_rows, const float* value, Panel<const Element> g,
               Panel<const Element> x, bool add, Panel<float> d_x, float* d_value) {
  for_wanted(value, d_value, [&](auto with_x, auto with_value) {
    const auto run = block_rows == 1 ? gradients_chunks<Element, with_x.value, with_value.value, false>
                                     : gradients_chunks<Element, with_x.value, with_value.value, true>;
    run(segments, block_rows, value, g, x, add, d_x, d_value);
  });
}

template <class Element>
void add_row_sums(Panel<const Element> panel, int64_t features, float* sum) {
  constexpr int step = vectors_per_load<Element>;
  constexpr int most = Vec::sums_at_once;
  const auto add_n = [&](auto n, int64_t f) __attribute__((always_inline)) {
    Vec total[most];
    UNROLL for (int i = 0; i < n.value; ++i) {
      total[i] = Vec::zero();
      for (int b = 0; b < panel.width; b += step * Vec::lanes) {
        Vec part[step];
        load_row<step>(panel.data + (f + i) * panel.stride + b, part);
        UNROLL for (int t = 0; t < step; ++t) total[i] = Vec::add(total[i], part[t]);
      }
    }
    Vec::template add_sums<n.value>(total, sum + f);
  };
  int64_t f = 0;
  for (; f + most <= features; f += most) add_n(Int<most>{}, f);
  for (; f < features; ++f) add_n(Int<1>{}, f);
}
