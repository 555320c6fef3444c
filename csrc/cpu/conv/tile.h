// Tiles (tiling.h), packed for the kernels and unpacked again, and where in them each tap of a kernel reads.
#pragma once
#include <algorithm>
#include <atomic>
#include <vector>

#include "common/layout.h"
#include "cpu/conv/tiling.h"
#include "cpu/kernels/isa.h"
#include "cpu/tensors.h"
#include "cpu/workspace.h"

namespace sparseprune {

// Images (N, C, H, W) as kernels see them.
template <class Scalar>
struct ImageView {
  Scalar* data;
  int64_t sample_stride, channel_stride, row_stride, column_stride;

  Scalar* at(int64_t n, int64_t c, int64_t h, int64_t w) const {
    return data + n * sample_stride + c * channel_stride + h * row_stride + w * column_stride;
  }
};

template <class Element>
ImageView<const Element> view_of(const Images& x) {
  return {data_of<Element>(x.tensor), x.sample_stride, x.channel_stride, x.row_stride, x.column_stride};
}
template <class Element>
ImageView<Element> mutable_view_of(const Images& x) {
  return {mutable_data_of<Element>(x.tensor), x.sample_stride, x.channel_stride, x.row_stride, x.column_stride};
}

// offset[(channel * kernel height + k) * kernel width + l]: where a tile holds what this tap reads. Channels are
// those of the source that a column index counts, `channels_of_index` of them each.
inline std::vector<int32_t> offset_table(const char* op, const Tiling& t, const Axis& down, const Axis& across,
                                         int64_t indices, int64_t channels_of_index) {
  check(t.numbers() <= INT32_MAX, op, ": expected a convolution whose smallest tile has fewer than ",
        "2^31 numbers, got ", t.numbers());
  const int64_t height = down.taps, width = across.taps;
  std::vector<int32_t> table(indices * height * width);
  for (int64_t i = 0, at = 0; i < indices; ++i)
    for (int64_t k = 0; k < height; ++k)
      for (int64_t l = 0; l < width; ++l, ++at) {
        const int64_t phase = down.phase(k) * across.phases + across.phase(l);
        table[at] = int32_t((i * channels_of_index * t.phases + phase) * t.plane() +
                            (down.step(k) * t.columns + across.step(l)) * t.lanes);
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

// n pixels, `step` apart, of `samples` samples each; a single sample's neighbours are one piece. `ahead`: from
// here to what will be packed soon.
template <class Element>
void pack_row(const Element* from, int64_t step, int64_t n, int samples, int lanes, Sum<Element>* to,
              int64_t ahead = 0) {
  if (lanes == 1 && step == 1)
    kernels<Element>().pack_pixels({from, 0, 1, int(n), ahead}, to, int(n));
  else
    kernels<Element>().pack_pixels({from, step, int(n), samples, ahead}, to, lanes);
}
template <class Element>
void unpack_row(const Sum<Element>* from, int lanes, int64_t n, Element* to, int64_t step, int samples) {
  if (lanes == 1 && step == 1)
    kernels<Element>().unpack_pixels(from, int(n), {to, 0, 1, int(n)});
  else
    kernels<Element>().unpack_pixels(from, lanes, {to, step, int(n), samples});
}

// A run as kernels want it, from where its first pixel is in an image: what lies between the rows of a tile whose
// lanes are pixels is zero.
template <class Element>
void pack_run(const Tiling& t, const Element* from, int64_t row_step, int64_t step, int64_t height, int64_t width,
              int samples, Sum<Element>* to) {
  const int64_t rows = t.lanes_are_samples() ? 1 : height;
  if (!t.lanes_are_samples()) std::fill_n(to, t.run(height, width), Sum<Element>(0));
  for (int64_t h = 0; h < rows; ++h)
    pack_row(from + h * row_step, step, width, samples, t.lanes, to + h * t.columns);
}

// The other way round.
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
  ImageView<const Element> source;
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
      for (int64_t phase_down = 0; phase_down < down.phases; ++phase_down)
        for (int64_t phase_across = 0; phase_across < across.phases; ++phase_across) {
          for (int64_t r = 0; r < t.rows; ++r, to += t.columns * t.lanes)
            pack(place.panel, first_channel + c, (place.top + r) * down.stride + down.start(phase_down),
                 place.left * across.stride + across.start(phase_across), to);
          if (!t.lanes_are_samples()) to = std::fill_n(to, conv_lanes, Sum<Element>(0));
        }
    held = place;
    return data;
  }

  // Channels are short pieces, far from one another, which hardware does not see coming: what is prefetched is the
  // next channel's, or, where its piece is a single row, that of the one after it.
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
               t.samples_in(panel, samples), t.lanes, to + begin * t.lanes,
               (t.rows > 1 ? 1 : 2) * source.channel_stride);
    std::fill(to + end * t.lanes, to + t.columns * t.lanes, Sum<Element>(0));
  }

  Sum<Element>* data = nullptr;
  Place held{};
};

}  // namespace sparseprune
