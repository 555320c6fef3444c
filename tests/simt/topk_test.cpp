// topk_masks on the CPU (simt.h) against a stable sort.
#include "cuda/topk/topk.cuh"

#include <algorithm>

#include "checking.h"

namespace sparseprune::cuda {
namespace {

template <class T>
void topk(const char* type, const std::vector<int64_t>& sizes, int64_t k, int levels) {
  current = std::string("topk ") + type + ", " + std::to_string(sizes.size()) + " tensors, k " +
            std::to_string(k) + (levels ? ", ties" : "");
  std::vector<Buffer<T>> scores;
  std::vector<Buffer<bool>> masks;
  std::vector<Scores<T>> tensors;
  int64_t all = 0, tiles = 0;
  for (const int64_t n : sizes) {
    scores.push_back(Buffer<T>::random(n));
    masks.emplace_back(n);
    for (int64_t i = 0; levels && i < n; ++i) {
      const int level = int(numbers() % unsigned(levels)) - levels / 2;
      scores.back()[i] = T(level == 0 && i % 2 ? -0.0f : float(level));
    }
    tensors.push_back({scores.back().data(), n, masks.back().data()});
    all += n;
    tiles += topk_tiles(n);
  }
  const Buffer<Selection> selection(1);
  memset(selection.data(), 0, sizeof(Selection));
  const Buffer<int32_t> ties(tiles);
  const Buffer<unsigned long long> before(tiles);
  launch_topk<T>(tensors.data(), int(tensors.size()), k, selection.data(), ties.data(), before.data(), nullptr);

  std::vector<std::pair<T, int64_t>> order;  // by falling score, then by position
  for (const auto& tensor : scores)
    for (int64_t i = 0; i < tensor.size(); ++i) order.push_back({tensor[i], int64_t(order.size())});
  std::stable_sort(order.begin(), order.end(), [](const auto& a, const auto& b) { return a.first > b.first; });
  std::vector<bool> expected(size_t(all), false);
  for (int64_t i = 0; i < k; ++i) expected[size_t(order[size_t(i)].second)] = true;
  int64_t at = 0;
  for (const auto& mask : masks)
    for (int64_t i = 0; i < mask.size(); ++i, ++at, ++checks)
      if (mask[i] != expected[size_t(at)]) fail("mask " + std::to_string(at) + " is " + std::to_string(mask[i]));
  if (selection[0].bad) fail("finite scores were refused");
}

template <class T>
void topk_cases(const char* type) {
  if (brief) {
    topk<T>(type, {1, 0, 3}, 2, 3);
    return topk<T>(type, {1100, 1, 20}, 700, 3);
  }
  for (const int levels : {0, 1, 3}) {
    topk<T>(type, {1}, 1, levels);
    topk<T>(type, {1, 0, 3}, 2, levels);
    topk<T>(type, {5, 3}, 0, levels);
    topk<T>(type, {1500, 1, 2100}, 700, levels);
    topk<T>(type, {1500, 1, 2100}, 1, levels);
    topk<T>(type, {1500, 1, 2100}, 3601, levels);
  }
  current = "topk refuses";
  for (const float bad : {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    const auto scores = Buffer<T>::random(40);
    scores[39] = T(bad);
    const Buffer<bool> mask(40);
    const Buffer<Selection> selection(1);
    memset(selection.data(), 0, sizeof(Selection));
    const Buffer<int32_t> ties(1);
    const Buffer<unsigned long long> before(1);
    const Scores<T> tensor{scores.data(), 40, mask.data()};
    launch_topk<T>(&tensor, 1, 3, selection.data(), ties.data(), before.data(), nullptr);
    if (selection[0].bad != bad_code(0, bad != bad)) fail("a score that is not finite went unnoticed");
    ++checks;
  }
}

void run() {
  topk_cases<float>("float32");
  if (!brief) topk_cases<double>("float64");
}

}  // namespace
}  // namespace sparseprune::cuda

int main(int argc, char** argv) { return sparseprune::cuda::main_of_test(argc, argv, sparseprune::cuda::run); }
