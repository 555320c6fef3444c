// How an image is cut into tiles: parts small enough for the L2 cache, with all that their results read.
//
// A tile is [channels, phases, rows, columns, lanes]. With 16 samples or more, lanes are samples: the numbers that
// a kernel computes at once are the pixels of a row, 16 samples (or 32, 64) each. With fewer, there is one lane,
// and they are pixels of one sample: rows of the tile follow one another, and what is computed between the end of
// one and the start of the next is dropped.
#pragma once
#if __has_include(<unistd.h>)
#include <unistd.h>
#endif

#include <algorithm>
#include <limits>

#include "common/geometry.h"
#include "cpu/images.h"
#include "cpu/kernels/kernels.h"

namespace sparseprune {

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
  int64_t plane() const { return product({rows, columns, lanes}) + (lanes_are_samples() ? 0 : conv_lanes); }
  int64_t numbers() const { return product({channels, phases, plane()}); }
  // A row of the tile's results, or all of them: how many numbers a kernel computes at once.
  int64_t run(int64_t height_here, int64_t width_here) const {
    return lanes_are_samples() ? width_here * lanes
                               : rounded_up((height_here - 1) * columns + width_here, conv_lanes);
  }
  // Whether a run of n numbers lies in an image just as kernels compute it; its pixels are `step` apart.
  template <class ImageView>
  bool in_place(const ImageView& images, int64_t step, int in_panel, int64_t n, int64_t width_here) const {
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
  t.phases = down.phases * across.phases;
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
    const bool fits = product({t.rows, t.columns}) <= pixels_in_cache;
    const double pieces = samples > lanes ? 1 + 32.0 / lanes : 1;
    const double cost = double(t.panels * lanes) * pieces * (fits ? 1 : 1000) *
                        (double(t.tiles()) * double(t.rows) * double(t.columns) * double(t.phases) +
                         double(down.results) * double(across.results));
    if (cost < best.cost) best = {t, cost};
    if (fits && !overlap) break;  // narrower tiles read no less
  }
  return best;
}

inline Tiling tiling_of(const Axis& down, const Axis& across, int64_t channels, int64_t samples,
                        int64_t number_bytes) {
  if (!vectors_of_samples(samples)) return tiling_with(1, down, across, channels, samples, number_bytes).tiling;
  Candidate best = tiling_with(conv_lanes, down, across, channels, samples, number_bytes);
  for (int lanes = 2 * conv_lanes; lanes <= panel_width && lanes < samples + conv_lanes; lanes *= 2) {
    const Candidate wider = tiling_with(lanes, down, across, channels, samples, number_bytes);
    // Where rows are short, more samples make up for it: four vectors hide the latency of their arithmetic.
    const bool short_rows = best.tiling.lanes * across.results < 4 * conv_lanes;
    if (wider.cost < best.cost || short_rows) best = wider;
  }
  return best.tiling;
}

}  // namespace sparseprune
