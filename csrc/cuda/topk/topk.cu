// Operator topk_masks on a GPU.
#include "cuda/stream.h"
#include "cuda/tensors.h"
#include "cuda/topk/topk.cuh"

namespace sparseprune::cuda {
namespace {

template <class T>
void fill_masks(const std::vector<Tensor>& scores, const std::vector<Tensor>& masks, int64_t k) {
  std::vector<Scores<T>> tensors;
  int64_t tiles = 0;
  for (size_t i = 0; i < scores.size(); ++i) {
    const int64_t n = scores[i].numel();
    tensors.push_back({data_of<T>(scores[i]), n, mutable_data_of<bool>(masks[i])});
    tiles += topk_tiles(n);
  }
  const OnDeviceOf device("topk_masks", scores[0]);
  const Tensor selection = torch::stable::new_zeros(scores[0], {sizeof(Selection)}, ScalarType::Byte);
  const Tensor ties = torch::stable::new_empty(scores[0], {tiles + 1}, ScalarType::Int),
               before = torch::stable::new_empty(scores[0], {tiles + 1}, ScalarType::Long);
  Selection* const at = mutable_data_of<Selection>(selection);
  launch_topk<T>(tensors.data(), int(tensors.size()), k, at, mutable_data_of<int32_t>(ties),
                 mutable_data_of<unsigned long long>(before), device.stream);
  device.check_launches();
  const int32_t bad = device.read(&at->bad);
  for (int i = 0, after = int(tensors.size()) - 1; bad && i <= after; ++i)
    for (const bool is_nan : {false, true})
      check(bad != bad_code(after - i, is_nan), "topk_masks: expected finite scores, got ", is_nan ? "nan" : "inf",
            " in scores[", i, "]");
}

std::vector<Tensor> topk_masks(std::vector<Tensor> scores, int64_t k) {
  int64_t n = 0;
  for (Tensor& score : scores) {
    const ScalarType type = score.scalar_type();
    check(Here::is_here(score) && score.get_device_index() == scores[0].get_device_index() &&
              type == scores[0].scalar_type() && (type == ScalarType::Float || type == ScalarType::Double),
          "topk_masks: expected scores on one GPU, all float32 or all float64; convert them with .to() first");
    n = std::min(n + score.numel(), most_numbers);
  }
  check(n < most_numbers, "topk_masks: expected fewer than 2^60 scores, got more");
  check(k >= 0 && k <= n, "topk_masks: expected k in 0..", n, " (number of scores), got ", k);
  std::vector<Tensor> masks;
  for (Tensor& score : scores) {
    score = torch::stable::contiguous(score);
    masks.push_back(torch::stable::new_empty(score, score.sizes(), ScalarType::Bool));
  }
  if (n > 0)
    scores[0].scalar_type() == ScalarType::Double ? fill_masks<double>(scores, masks, k)
                                                  : fill_masks<float>(scores, masks, k);
  return masks;
}

}  // namespace
}  // namespace sparseprune::cuda

REGISTER_FOR_CUDA(m) { m.impl("topk_masks", TORCH_BOX(&sparseprune::cuda::topk_masks)); }
