// topk_outside: the k largest scores outside a pattern, of a matrix that is looked at some rows at a time.
//
// 1. A threaded pass over the rows copies the scores above the k-th best so far; before there are as many, those
//    above what a sample says.
// 2. The k-th best of these and of those so far is selected, and what is below it dropped, in order of position.
//
// What is dropped depends on scores and positions alone: neither the threads nor the rows of a call matter.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <functional>
#include <tuple>
#include <vector>

#include "common/checks.h"
#include "cpu/topk/scan.h"

namespace sparseprune {
namespace {

// Scores of a unit of threaded work.
constexpr int64_t UNIT = int64_t{1} << 16;
constexpr int64_t SAMPLES = int64_t{1} << 13;

template <class Float>
constexpr KeyOf<Float> below_all = -LARGEST<Float> - 1;

template <class Float>
struct Found {
  std::vector<Float> scores;
  std::vector<int64_t> positions;  // ascending
  bool finite = true;

  void add(Float score, int64_t position) {
    scores.push_back(score);
    positions.push_back(position);
  }
};

// A row's scores with keys above the threshold's, outside the pattern's columns. Few are, once it is known what
// the best are like, so that a tile is compared before it is looked at.
template <class Float>
void look_at_row(const Loops<Float>& loops, const Float* scores, int64_t cols, const int32_t* kept,
                 const int32_t* kept_end, int64_t first, KeyOf<Float> threshold, Found<Float>& found) {
  constexpr KeyOf<Float> above_all = LARGEST<Float> + 1;
  uint8_t better[TILE];
  for (int64_t begin = 0; begin < cols; begin += TILE) {
    const int64_t size = std::min(TILE, cols - begin);
    found.finite &= loops.count_tile(scores + begin, size, threshold, above_all, better).room >= 0;
    for_flagged(better, size, [&](int64_t i) {
      const int64_t j = begin + i;
      while (kept != kept_end && *kept < j) ++kept;
      if (kept == kept_end || *kept != j) found.add(scores[j], first + j);
    });
  }
}

// A score that more than `count` of these very likely exceed, in a sample of them.
template <class Float>
KeyOf<Float> likely_below(const Float* scores, int64_t n, int64_t count) {
  const int64_t m = std::min<int64_t>(n, SAMPLES);
  const double expected = static_cast<double>(count) * static_cast<double>(m) / static_cast<double>(n);
  const auto rank = static_cast<int64_t>(expected + 4 * std::sqrt(expected) + 4);
  if (rank >= m) return below_all<Float>;
  std::vector<KeyOf<Float>> sample(m);
  for (int64_t i = 0; i < m; ++i) sample[i] = key_of(scores[position_of_sample(i, m, n)]);
  std::nth_element(sample.begin(), sample.begin() + rank, sample.end(), std::greater<>());
  return sample[rank];
}

// What is kept of those found: the k largest, ties to the earlier position.
template <class Float>
void keep_best(Found<Float>& found, int64_t k) {
  const auto n = static_cast<int64_t>(found.scores.size());
  if (n <= k) return;
  std::vector<KeyOf<Float>> keys(n);
  std::transform(found.scores.begin(), found.scores.end(), keys.begin(), key_of<Float>);
  std::vector<KeyOf<Float>> ranked = keys;
  const auto kth = ranked.begin() + (k - 1);
  std::nth_element(ranked.begin(), kth, ranked.end(), std::greater<>());
  int64_t ties = k - std::count_if(ranked.begin(), kth, [&](auto key) { return key > *kth; });
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i) {
    if (keys[i] < *kth || (keys[i] == *kth && ties-- <= 0)) continue;
    found.scores[kept] = found.scores[i];
    found.positions[kept++] = found.positions[i];
  }
  found.scores.resize(kept);
  found.positions.resize(kept);
}

template <class Float>
std::tuple<Tensor, Tensor> topk_outside(const Tensor& scores, const Tensor& crow, const Tensor& col,
                                        int64_t first_row, const Tensor& best, const Tensor& best_at, int64_t k) {
  const int64_t rows = scores.size(0), cols = scores.size(1);
  const auto* data = static_cast<const Float*>(scores.const_data_ptr());
  const auto* start = crow.const_data_ptr<int32_t>();
  const auto* kept = col.const_data_ptr<int32_t>();
  const auto* before = static_cast<const Float*>(best.const_data_ptr());
  const auto* before_at = best_at.const_data_ptr<int64_t>();
  // Those so far come first, so that what is equal to the k-th of them loses.
  const auto less = [](Float a, Float b) { return key_of(a) < key_of(b); };
  const KeyOf<Float> least =
      best.numel() == k && k > 0 ? key_of(*std::min_element(before, before + k, less)) : below_all<Float>;
  const Loops<Float> loops = current_loops<Float>();
  Found<Float> all{{before, before + best.numel()}, {before_at, before_at + best.numel()}};
  const auto look = [&](KeyOf<Float> threshold) {
    const int64_t unit_rows = std::max<int64_t>(UNIT / cols, 1), units = (rows + unit_rows - 1) / unit_rows;
    std::vector<Found<Float>> of_unit(units);
    torch::stable::parallel_for(0, units, 1, [&](int64_t begin, int64_t end) {
      for (int64_t unit = begin; unit < end; ++unit) {
        for (int64_t r = unit * unit_rows; r < std::min((unit + 1) * unit_rows, rows); ++r) {
          const int64_t row = first_row + r;
          look_at_row(loops, data + r * cols, cols, kept + start[row], kept + start[row + 1], row * cols,
                      threshold, of_unit[unit]);
        }
      }
    });
    int64_t n = 0;
    for (const auto& found : of_unit) {
      check(found.finite, "topk_outside: expected finite scores, got nan or inf");
      n += static_cast<int64_t>(found.scores.size());
    }
    // Those below the threshold are missing: it was too high, unless there are enough.
    if (threshold != least && best.numel() + n < k) return false;
    for (const auto& found : of_unit) {
      all.scores.insert(all.scores.end(), found.scores.begin(), found.scores.end());
      all.positions.insert(all.positions.end(), found.positions.begin(), found.positions.end());
    }
    return true;
  };
  if (k > 0 && rows * cols > 0) {
    // The largest may all be in the pattern, where they do not count.
    const int64_t in_pattern = start[first_row + rows] - start[first_row];
    const KeyOf<Float> likely = best.numel() == k ? least : likely_below(data, rows * cols, k + in_pattern);
    if (!look(std::max(likely, least))) look(least);
  }
  keep_best(all, k);
  const auto n = static_cast<int64_t>(all.scores.size());
  const Tensor result = torch::stable::new_empty(scores, {n}, scores.scalar_type());
  const Tensor positions = torch::stable::new_empty(scores, {n}, ScalarType::Long);
  std::copy(all.scores.begin(), all.scores.end(), static_cast<Float*>(result.mutable_data_ptr()));
  std::copy(all.positions.begin(), all.positions.end(), positions.mutable_data_ptr<int64_t>());
  return {result, positions};
}

std::tuple<Tensor, Tensor> checked_topk_outside(const Tensor& scores, const Tensor& crow, const Tensor& col,
                                                int64_t first_row, const Tensor& best, const Tensor& best_at,
                                                int64_t k) {
  const char* op = "topk_outside";
  const auto type = scores.scalar_type();
  check(scores.is_cpu() && (type == ScalarType::Float || type == ScalarType::Double) && scores.dim() == 2, op,
        ": expected scores (rows, columns) on the CPU, float32 or float64, got ", name_of(type), " of shape ",
        shape_of(scores));
  for (const Tensor* t : {&crow, &col})
    check(t->is_cpu() && t->scalar_type() == ScalarType::Int && t->dim() == 1 && t->is_contiguous(), op,
          ": expected crow and col to be contiguous int32 vectors on the CPU, got ", name_of(t->scalar_type()),
          " of shape ", shape_of(*t));
  check(best.is_cpu() && best.scalar_type() == type && best.dim() == 1 && best_at.is_cpu() &&
            best_at.scalar_type() == ScalarType::Long && best_at.dim() == 1 && best_at.numel() == best.numel(),
        op, ": expected best like the scores and best_at int64, of one length, got ", name_of(best.scalar_type()),
        " of shape ", shape_of(best), " and ", name_of(best_at.scalar_type()), " of shape ", shape_of(best_at));
  check(k >= best.numel(), op, ": expected k >= ", best.numel(), " (number of the best so far), got ", k);
  check(first_row >= 0 && first_row + scores.size(0) <= crow.numel() - 1, op, ": expected rows of the pattern's ",
        crow.numel() - 1, ", got ", scores.size(0), " from row ", first_row);
  const auto* start = crow.const_data_ptr<int32_t>();
  const auto* column = col.const_data_ptr<int32_t>();
  for (int64_t r = first_row; r < first_row + scores.size(0); ++r) {
    check(0 <= start[r] && start[r] <= start[r + 1] && start[r + 1] <= col.numel(), op,
          ": expected crow to ascend from 0 to ", col.numel(), " (blocks), got ", start[r], " and ", start[r + 1],
          " in row ", r);
    for (int64_t i = start[r]; i < start[r + 1]; ++i)
      check(column[i] < scores.size(1) && column[i] > (i == start[r] ? -1 : column[i - 1]), op,
            ": expected col to ascend within a row, from 0 to ", scores.size(1) - 1, ", got ", column[i],
            " in row ", r);
  }
  const Tensor rows = torch::stable::contiguous(scores), ranked = torch::stable::contiguous(best),
               at = torch::stable::contiguous(best_at);
  return type == ScalarType::Double ? topk_outside<double>(rows, crow, col, first_row, ranked, at, k)
                                    : topk_outside<float>(rows, crow, col, first_row, ranked, at, k);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, m) { m.impl("topk_outside", TORCH_BOX(&checked_topk_outside)); }

}  // namespace sparseprune
