// Tiles: a part of an image small enough for the L2 cache, with all that its results read, packed for the kernels.
//
// A tile is [channels, phases, rows, columns, lanes]. With 16 samples or more, lanes are samples: the numbers that
// a kernel computes at once are the pixels of a row, 16 samples (or 32, 64) each. With fewer, there is one lane,
// and they are pixels of one sample: rows of the tile follow one another, and what is computed between the end of
// one and the start of the next is dropped.
#pragma once
#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#include <limits>

#include "common/geometry.h"
#include "cpu/operands.h"

namespace sparseprune {

// (N, C, H, W) of any strides, in elements.
template <class Scalar>
struct Images {
  Scalar* data;
  int64_t sample_stride, channel_stride, row_stride, column_stride;

  Scalar* at(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return data + n * sample_stride + c * channel_stride + h * row_stride + w * column_stride;
  }
};

template <class Element>
Images<const Element> images(const Tensor& x) {
  return {data_of<Element>(x), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}
template <class Element>
Images<Element> mutable_images(const Tensor& x) {
  return {mutable_data_of<Element>(x), x.stride(0), x.stride(1), x.stride(2), x.stride(3)};
}

constexpr int64_t few_samples = 16;  // below, lanes are pixels

inline int64_t rounded_up(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Which tile: of which panel of samples and group of channels, and where its results begin.
struct Place {
  int64_t panel, group, top, left;

  bool operator==(const Place&) const = default;
};

// How the results of one (panel of samples, group of channels) are cut into tiles.
struct Tiling {
  int lanes;
  int64_t height, width;  // results of a tile
  int64_t rows, columns;  // of the packed source
  int64_t phases, channels;
  int64_t tiles_down, tiles_across;
  int64_t panels;  // of `lanes` samples

  bool lanes_are_samples() const { return lanes > 1; }
  int64_t tiles() const { return tiles_down * tiles_across; }
  int samples_in(int64_t panel, int64_t samples) const {
    return int(std::min<int64_t>(lanes, samples - panel * lanes));
  }
  // The tiles of a group of channels are neighbours, and the groups of a panel.
  Place place_of(int64_t item, int64_t groups) const {
    const int64_t tile = item % tiles();
    return {item / tiles() / groups, item / tiles() % groups, tile / tiles_across * height,
            tile % tiles_across * width};
  }
  // Where lanes are pixels, zeros follow: a run ends beyond its last row, and must not meet another channel there,
  // whose infinities would become NaN in products with zero.
  int64_t plane() const { return rows * columns * lanes + (lanes_are_samples() ? 0 : conv_lanes); }
  int64_t numbers() const { return channels * phases * plane(); }
  // A row of the tile's results, or all of them: how many numbers a kernel computes at once.
  int64_t run(int64_t height_here, int64_t width_here) const {
    return lanes_are_samples() ? width_here * lanes
                               : rounded_up((height_here - 1) * columns + width_here, conv_lanes);
  }
  // Whether a run of n numbers lies in an image just as kernels compute it; its pixels are `step` apart.
  template <class Scalar>
  bool in_place(const Images<Scalar>& images, int64_t step, int in_panel, int64_t n, int64_t width_here) const {
    return lanes_are_samples() ? in_panel == lanes && images.sample_stride == 1 : n == width_here && step == 1;
  }
  int lanes_in_place(int64_t n) const { return lanes_are_samples() ? lanes : int(n); }
};

// Three quarters of the L2 cache: larger tiles read less of their neighbours. Half of that where they read nothing
// of them, and the results need room too.
inline int64_t tile_bytes(bool overlap) {
#ifdef _SC_LEVEL2_CACHE_SIZE
  static const int64_t cache = sysconf(_SC_LEVEL2_CACHE_SIZE);
#else
  static const int64_t cache = 0;
#endif
  constexpr int64_t usual = 1 << 20;
  return std::clamp<int64_t>(cache > 0 ? cache : usual, usual / 4, 4 * usual) * 3 / (overlap ? 4 : 8);
}

// A tiling with so many lanes, and the cache lines that it moves.
struct Candidate {
  Tiling tiling;
  double cost;
};

inline Candidate tiling_with(int lanes, const Axis& down, const Axis& across, int64_t channels, int64_t samples,
                             int64_t number_bytes) {
  Candidate best{{}, std::numeric_limits<double>::infinity()};
  Tiling t{};
  t.lanes = lanes;
  t.channels = channels;
  t.phases = int64_t(down.phases.size() * across.phases.size());
  t.panels = (samples + lanes - 1) / lanes;
  const bool overlap = down.reach > 0 || across.reach > 0;  // of what neighbouring tiles read
  const int64_t pixels_in_cache =
      tile_bytes(overlap) / (number_bytes * lanes * std::max<int64_t>(channels * t.phases, 1));
  const int64_t narrowest = std::min<int64_t>(across.results, t.lanes_are_samples() ? 4 : conv_lanes);
  for (int64_t parts = 1; parts <= across.results; ++parts) {
    t.width = (across.results + parts - 1) / parts;
    if (!t.lanes_are_samples() && parts > 1) t.width = rounded_up(t.width, conv_lanes);  // whole vectors
    t.columns = t.width + across.reach;
    if (t.width < narrowest) break;
    const int64_t most_rows = std::max<int64_t>(pixels_in_cache / t.columns - down.reach, 1);
    t.tiles_down = (down.results + most_rows - 1) / most_rows;
    t.height = (down.results + t.tiles_down - 1) / t.tiles_down;
    t.rows = t.height + down.reach;
    t.tiles_down = (down.results + t.height - 1) / t.height;
    t.tiles_across = (across.results + t.width - 1) / t.width;
    // Tiles that do not fit are read from further away at every use. Samples beside those that are packed lie in
    // between in memory: short pieces, the shorter the slower (measured: 64 samples packed 16 at a time take twice
    // as long as packed together).
    const bool fits = t.rows * t.columns <= pixels_in_cache;
    const double pieces = samples > lanes ? 1 + 32.0 / lanes : 1;
    const double cost = double(t.panels * lanes) * pieces * (fits ? 1 : 1000) *
                        double(t.tiles() * t.rows * t.columns * t.phases + down.results * across.results);
    if (cost < best.cost) best = {t, cost};
    if (fits && !overlap) break;  // narrower tiles read no less
  }
  return best;
}

inline Tiling tiling_of(const Axis& down, const Axis& across, int64_t channels, int64_t samples,
                        int64_t number_bytes) {
  if (samples < few_samples) return tiling_with(1, down, across, channels, samples, number_bytes).tiling;
  Candidate best = tiling_with(conv_lanes, down, across, channels, samples, number_bytes);
  for (int lanes = 2 * conv_lanes; lanes <= panel_width && lanes < samples + conv_lanes; lanes *= 2) {
    const Candidate wider = tiling_with(lanes, down, across, channels, samples, number_bytes);
    // Where rows are short, more samples make up for it: four vectors hide the latency of their arithmetic.
    const bool short_rows = best.tiling.lanes * across.results < 4 * conv_lanes;
    if (wider.cost < best.cost || short_rows) best = wider;
  }
  return best.tiling;
}

// offset[(channel * kernel height + k) * kernel width + l]: where a tile holds what this tap reads. Channels are
// those of the source that a column index counts, `channels_of_index` of them each.
inline std::vector<int32_t> offset_table(const char* op, const Tiling& t, const Axis& down, const Axis& across,
                                         int64_t indices, int64_t channels_of_index) {
  check(t.numbers() <= INT32_MAX, op, ": expected a convolution whose smallest tile has fewer than ",
        "2^31 numbers, got ", t.numbers());
  const int64_t height = int64_t(down.step.size()), width = int64_t(across.step.size());
  std::vector<int32_t> table(indices * height * width);
  for (int64_t i = 0, at = 0; i < indices; ++i)
    for (int64_t k = 0; k < height; ++k)
      for (int64_t l = 0; l < width; ++l, ++at) {
        const int64_t phase = down.phase[k] * int64_t(across.phases.size()) + across.phase[l];
        table[at] = int32_t((i * channels_of_index * t.phases + phase) * t.plane() +
                            (down.step[k] * t.columns + across.step[l]) * t.lanes);
      }
  return table;
}

// offset[j] = table[index[j]]; false where an index is out of range.
inline bool look_up(const std::vector<int32_t>& table, const int32_t* index, int64_t n, int32_t* offset) {
  std::atomic<bool> good{true};
  const uint32_t size = uint32_t(table.size());
  torch::stable::parallel_for(0, n, copy_grain, [&](int64_t begin, int64_t end) {
    uint32_t largest = 0;
    for (int64_t j = begin; j < end; ++j) largest = std::max(largest, uint32_t(index[j]));
    if (begin < end && largest >= size) {
      good = false;
      return;
    }
    for (int64_t j = begin; j < end; ++j) offset[j] = table[index[j]];
  });
  return good;
}

// n pixels, `step` apart, of `samples` samples each; a single sample's neighbours are one piece.
template <class Element>
void pack_row(const Element* from, int64_t step, int64_t n, int samples, int lanes, Sum<Element>* to) {
  if (lanes == 1 && step == 1)
    kernels<Element>().pack_pixels({from, 0, 1, int(n)}, to, int(n));
  else
    kernels<Element>().pack_pixels({from, step, int(n), samples}, to, lanes);
}
template <class Element>
void unpack_row(const Sum<Element>* from, int lanes, int64_t n, Element* to, int64_t step, int samples) {
  if (lanes == 1 && step == 1)
    kernels<Element>().unpack_pixels(from, int(n), {to, 0, 1, int(n)});
  else
    kernels<Element>().unpack_pixels(from, lanes, {to, step, int(n), samples});
}

// A run as kernels computed it, to where its first pixel is in an image.
template <class Element>
void unpack_run(const Tiling& t, const Sum<Element>* from, int64_t height, int64_t width, Element* to,
                int64_t row_step, int64_t step, int samples) {
  const int64_t rows = t.lanes_are_samples() ? 1 : height;
  for (int64_t h = 0; h < rows; ++h)
    unpack_row(from + h * t.columns, t.lanes, width, to + h * row_step, step, samples);
}

// A tile of one panel of samples, packed by the thread that asks for it and kept until it asks for another.
template <class Element>
struct PackedTile {
  Images<const Element> source;
  int64_t samples;
  const Axis& down;
  const Axis& across;
  const Tiling& tiling;

  const Sum<Element>* get(Place place) {
    if (data && place == held) return data;
    const Tiling& t = tiling;
    const int64_t first_channel = place.group * t.channels;
    data = workspace<Sum<Element>>(gathered_block, t.numbers(), 1).data;
    Sum<Element>* to = data;
    for (int64_t c = 0; c < t.channels; ++c)
      for (const int64_t phase_down : down.phases)
        for (const int64_t phase_across : across.phases) {
          for (int64_t r = 0; r < t.rows; ++r, to += t.columns * t.lanes)
            pack(place.panel, first_channel + c, (place.top + r) * down.stride + phase_down + down.first,
                 place.left * across.stride + phase_across + across.first, to);
          if (!t.lanes_are_samples()) to = std::fill_n(to, conv_lanes, Sum<Element>(0));
        }
    held = place;
    return data;
  }

  void pack(int64_t panel, int64_t channel, int64_t h, int64_t w, Sum<Element>* to) const {
    const Tiling& t = tiling;
    // Columns begin .. end of the row lie within the image.
    const int64_t s = across.stride;
    const int64_t begin =
        h < 0 || h >= down.source ? t.columns : std::clamp<int64_t>((-w + s - 1) / s, 0, t.columns);
    const int64_t end = std::clamp<int64_t>((across.source - w + s - 1) / s, begin, t.columns);
    std::fill_n(to, begin * t.lanes, Sum<Element>(0));
    if (begin < end)
      pack_row(source.at(panel * t.lanes, channel, h, w + begin * s), s * source.column_stride, end - begin,
               t.samples_in(panel, samples), t.lanes, to + begin * t.lanes);
    std::fill(to + end * t.lanes, to + t.columns * t.lanes, Sum<Element>(0));
  }

  Sum<Element>* data = nullptr;
  Place held{};
};

}  // namespace sparseprune
