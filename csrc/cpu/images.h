// Images in the layout that kernels want.
#pragma once
#include <algorithm>

#include "common/layout.h"
#include "cpu/kernels/isa.h"
#include "cpu/tensors.h"

namespace sparseprune {

// With fewer samples, vectors are of pixels.
constexpr int64_t few_samples = 16;

inline bool vectors_of_samples(int64_t samples) { return samples >= few_samples; }

// The same numbers, batch-inner or ordinarily laid out, as in_layout() gives them. The kernels that pack panels
// are faster than torch at it where they can do it: they transpose whole panels, in parts that stay in the L2
// cache.
inline Images in_layout_by_kernels(const Images& x, bool batch_inner) {
  const int64_t n = x.samples, features = x.features();
  const bool can = x.tensor.scalar_type() == ScalarType::Float && n % conv_lanes == 0 && x.numel() > 0;
  if (!can || x.batch_inner == batch_inner) return in_layout(x, batch_inner);
  const Images result = new_images(x.tensor, n, x.channels, x.height, x.width, batch_inner);
  const Tensor source = batch_inner ? torch::stable::contiguous(x.tensor) : x.tensor;
  const float* from = data_of<float>(source);
  float* to = mutable_data_of<float>(result.tensor);
  constexpr int64_t part = 512;  // features
  torch::stable::parallel_for(0, (features + part - 1) / part, 8, [&](int64_t begin, int64_t end) {
    for (int64_t f = begin * part; f < std::min(end * part, features); f += part)
      for (int64_t s = 0; s < n; s += panel_width) {
        const int64_t count = std::min(part, features - f);
        const int samples = int(std::min<int64_t>(panel_width, n - s));
        if (batch_inner)
          kernels<float>().pack({from + s * features + f, 1, features}, {}, count, samples,
                                {to + f * n + s, n, samples});
        else
          kernels<float>().unpack({from + f * n + s, n, samples}, count, samples,
                                  {to + s * features + f, 1, features});
      }
  });
  return result;
}

// As the kernels of convolutions want them: samples innermost wherever there are enough of them to fill vectors,
// else the pixels of a row.
inline Images for_kernels(const Images& x) {
  const bool inner = vectors_of_samples(x.samples);
  if (inner ? x.sample_stride == 1 : x.column_stride == 1 || x.width == 1) return x;
  return in_layout_by_kernels(x, inner);
}

}  // namespace sparseprune
