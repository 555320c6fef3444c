// topk_masks: the k largest scores of a list of tensors, exactly k, ties to the earlier position.
//
// 1. A sample of the scores gives a bracket [lo, hi] that very likely holds the k-th largest.
// 2. A threaded pass counts the scores above hi, at hi and at lo, and copies those strictly between.
// 3. The k-th largest of all is hi, lo, or selected among the copies (about 1 % of all scores).
// 4. A threaded pass writes the masks: scores above the threshold, and those equal to it up to a position.
//
// Each chunk's counts are exact integers (scan.h) and chunks do not depend on the threads, so the masks do not
// either.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>
#include <stdexcept>
#include <string>
#include <vector>

#include "common/checks.h"
#include "cpu/topk/scan.h"

namespace sparseprune {
namespace {

// Scores of a unit of threaded work.
constexpr int64_t CHUNK = int64_t{1} << 16;
// The sample and the bracket's content cost about the same.
constexpr int64_t SAMPLES = int64_t{1} << 16;

template <class Float>
struct Chunk {
  using Key = KeyOf<Float>;
  const Float* scores;
  bool* mask;
  int64_t size;
  int64_t first;   // position over all tensors together
  int64_t tensor;  // index in the list
  // filled by count()
  int64_t above, at_hi, at_lo;
  std::vector<Key> between;  // lo < key < hi, in order of position
  bool finite;
};

template <class Float>
struct Selection {
  KeyOf<Float> threshold;  // key of the k-th largest
  int64_t above;           // scores above it
};

template <class Float>
[[noreturn]] void refuse(const Chunk<Float>& chunk) {
  const Float* bad = std::find_if(chunk.scores, chunk.scores + chunk.size,
                                  [](Float score) { return magnitude_of(score) > LARGEST<Float>; });
  const auto infinity = std::bit_cast<KeyOf<Float>>(std::numeric_limits<Float>::infinity());
  const char* what = magnitude_of(*bad) > infinity ? "nan" : "inf";
  throw std::invalid_argument(std::string("topk_masks: expected finite scores, got ") + what + " in scores[" +
                              std::to_string(chunk.tensor) + "]");
}

template <class Float>
void count(const Loops<Float>& loops, Chunk<Float>& chunk, KeyOf<Float> lo, KeyOf<Float> hi) {
  chunk.above = chunk.at_hi = chunk.at_lo = 0;
  chunk.between.clear();
  KeyOf<Float> room = 0;
  uint8_t between[TILE];
  for (int64_t begin = 0; begin < chunk.size; begin += TILE) {
    const Float* scores = chunk.scores + begin;
    const int64_t size = std::min(TILE, chunk.size - begin);
    const TileCounts<Float> tile = loops.count_tile(scores, size, lo, hi, between);
    chunk.above += tile.above;
    chunk.at_hi += tile.at_hi;
    chunk.at_lo += tile.at_lo;
    room |= tile.room;
    for_flagged(between, size, [&](int64_t i) { chunk.between.push_back(key_of(scores[i])); });
  }
  chunk.finite = room >= 0;
}

// One score from each of up to SAMPLES equal stretches of positions.
template <class Float>
std::vector<KeyOf<Float>> sample(const std::vector<Chunk<Float>>& chunks, int64_t n) {
  const int64_t m = std::min(n, SAMPLES);
  std::vector<KeyOf<Float>> keys(m);
  torch::stable::parallel_for(0, m, 4096, [&](int64_t begin, int64_t end) {
    auto chunk = std::upper_bound(chunks.begin(), chunks.end(), position_of_sample(begin, m, n),
                                  [](int64_t position, const auto& c) { return position < c.first; }) -
                 1;
    for (int64_t i = begin; i < end; ++i) {
      const int64_t position = position_of_sample(i, m, n);
      while (position >= chunk->first + chunk->size) ++chunk;
      keys[i] = key_of(chunk->scores[position - chunk->first]);
    }
  });
  return keys;
}

// Counts all chunks against [lo, hi]; true when the k-th largest is in there.
template <class Float>
bool select(const Loops<Float>& loops, std::vector<Chunk<Float>>& chunks, int64_t k, KeyOf<Float> lo,
            KeyOf<Float> hi, Selection<Float>& selection) {
  torch::stable::parallel_for(0, chunks.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) count(loops, chunks[c], lo, hi);
  });
  int64_t above = 0, at_hi = 0, at_lo = 0, between = 0;
  for (const auto& chunk : chunks) {
    if (!chunk.finite) refuse(chunk);
    above += chunk.above;
    at_hi += chunk.at_hi;
    at_lo += chunk.at_lo;
    between += static_cast<int64_t>(chunk.between.size());
  }
  if (k <= above) return false;
  if (k <= above + at_hi) {
    selection = {hi, above};
    return true;
  }
  if (k <= above + at_hi + between) {
    std::vector<KeyOf<Float>> keys;
    keys.reserve(between);
    for (const auto& chunk : chunks) keys.insert(keys.end(), chunk.between.begin(), chunk.between.end());
    const auto kth = keys.begin() + (k - above - at_hi - 1);
    std::nth_element(keys.begin(), kth, keys.end(), std::greater<>());
    const auto larger = std::count_if(keys.begin(), kth, [&](auto key) { return key > *kth; });
    selection = {*kth, above + at_hi + larger};
    return true;
  }
  selection = {lo, above + at_hi + between};
  return k <= above + at_hi + between + at_lo;
}

template <class Float>
int64_t count_ties(const Chunk<Float>& chunk, KeyOf<Float> threshold, KeyOf<Float> lo, KeyOf<Float> hi) {
  if (threshold == hi) return chunk.at_hi;
  if (threshold == lo) return chunk.at_lo;
  return std::count(chunk.between.begin(), chunk.between.end(), threshold);
}

// The position before which scores equal to the threshold are kept: just after the r-th of them.
template <class Float>
int64_t end_of_ties(const std::vector<Chunk<Float>>& chunks, int64_t r, KeyOf<Float> threshold, KeyOf<Float> lo,
                    KeyOf<Float> hi) {
  if (r == 0) return 0;
  for (const auto& chunk : chunks) {
    const int64_t ties = count_ties(chunk, threshold, lo, hi);
    if (r > ties) {
      r -= ties;
      continue;
    }
    for (int64_t i = 0; i < chunk.size; ++i) {
      r -= key_of(chunk.scores[i]) == threshold;
      if (r == 0) return chunk.first + i + 1;
    }
  }
  throw std::logic_error("topk_masks: fewer ties than counted");
}

template <class Float>
void topk(std::vector<Chunk<Float>>& chunks, int64_t n, int64_t k) {
  using Key = KeyOf<Float>;
  const Loops<Float> loops = current_loops<Float>();
  const Key largest = LARGEST<Float>;
  Selection<Float> selection{};
  Key lo{}, hi{};
  std::vector<Key> keys = sample(chunks, n);
  const double m = static_cast<double>(keys.size());
  const int64_t rank = std::max<int64_t>(k, 1);  // k = 0: the largest score is the threshold, and no tie is kept
  const double density = static_cast<double>(rank) / static_cast<double>(n);
  // Four standard errors miss the k-th score once in 16,000 times, or when the sample is not representative.
  for (const double width : {4.0, 64.0, std::numeric_limits<double>::infinity()}) {
    const double slack = width * std::sqrt(m * density * (1 - density)) + 1;
    const double first = m * density - slack, last = m * density + slack;
    hi = largest, lo = -largest;
    const auto descending = std::greater<>();
    if (first > 0) {
      const auto it = keys.begin() + static_cast<int64_t>(first);
      std::nth_element(keys.begin(), it, keys.end(), descending);
      hi = std::min(*it, largest);
    }
    if (last < m - 1) {
      const auto it = keys.begin() + static_cast<int64_t>(last);
      std::nth_element(keys.begin(), it, keys.end(), descending);
      lo = std::max(*it, static_cast<Key>(-largest));
    }
    if (select(loops, chunks, rank, lo, hi, selection)) break;
  }
  const Key threshold = selection.threshold;
  const int64_t tied_end = end_of_ties(chunks, k - selection.above, threshold, lo, hi);
  torch::stable::parallel_for(0, chunks.size(), 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      const auto& chunk = chunks[c];
      const int64_t tied = std::clamp<int64_t>(tied_end - chunk.first, 0, chunk.size);
      loops.write_mask(chunk.scores, chunk.mask, tied, static_cast<Key>(threshold - 1));
      loops.write_mask(chunk.scores + tied, chunk.mask + tied, chunk.size - tied, threshold);
    }
  });
}

template <class Float>
void fill_masks(const std::vector<Tensor>& scores, const std::vector<Tensor>& masks, int64_t n, int64_t k) {
  std::vector<Chunk<Float>> chunks;
  chunks.reserve(n / CHUNK + scores.size());
  int64_t first = 0;
  for (size_t t = 0; t < scores.size(); ++t) {
    const auto* values = static_cast<const Float*>(scores[t].const_data_ptr());
    auto* mask = static_cast<bool*>(masks[t].mutable_data_ptr());
    const int64_t numel = scores[t].numel();
    for (int64_t begin = 0; begin < numel; begin += CHUNK) {
      const int64_t size = std::min(CHUNK, numel - begin);
      chunks.push_back(
          {values + begin, mask + begin, size, first + begin, static_cast<int64_t>(t), 0, 0, 0, {}, true});
    }
    first += numel;
  }
  if (n > 0) topk(chunks, n, k);
}

std::vector<Tensor> topk_masks(std::vector<Tensor> scores, int64_t k) {
  int64_t n = 0;
  for (const auto& score : scores) {
    const auto type = score.scalar_type();
    check(score.is_cpu() && type == scores[0].scalar_type() &&
              (type == ScalarType::Float || type == ScalarType::Double),
          "topk_masks: expected CPU scores, all float32 or all float64; convert them with .to() first");
    n = std::min(n + score.numel(), most_numbers);
  }
  check(n < most_numbers, "topk_masks: expected fewer than 2^60 scores, got more");
  check(k >= 0 && k <= n, "topk_masks: expected k in 0..", n, " (number of scores), got ", k);
  std::vector<Tensor> masks;
  for (auto& score : scores) {
    score = torch::stable::contiguous(score);
    masks.push_back(torch::stable::new_empty(score, score.sizes(), ScalarType::Bool));
  }
  if (!scores.empty() && scores[0].scalar_type() == ScalarType::Double) {
    fill_masks<double>(scores, masks, n, k);
  } else {
    fill_masks<float>(scores, masks, n, k);
  }
  return masks;
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, m) { m.impl("topk_masks", TORCH_BOX(&topk_masks)); }

}  // namespace sparseprune
