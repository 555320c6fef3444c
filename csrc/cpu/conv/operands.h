// What the operators of convolution share: checks of their arguments and the layout of images in memory.
#pragma once
#include <optional>

#include "common/conv_plan.h"
#include "common/pattern.h"
#include "cpu/conv/tile.h"

namespace sparseprune {

inline void check_images(const char* op, const char* what, const Tensor& t, ScalarType type, int64_t channels,
                         const char* meaning) {
  check_type(op, what, t, type);
  check_images(op, what, t, channels, meaning);
}

inline int64_t check_conv_pattern(const char* op, const Tensor& crow, const Tensor& col, const ConvGeometry& g,
                                  int64_t block_rows) {
  check_type(op, "crow", crow, ScalarType::Int);
  check_type(op, "col", col, ScalarType::Int);
  check(crow.dim() == 1 && col.dim() == 1 && crow.numel() >= 1 && (crow.numel() - 1) % g.groups == 0, op,
        ": expected crow of out_channels / ", block_rows, " + 1 numbers, rows of blocks divisible by groups (",
        g.groups, "), and col of as many as there are blocks, got ", shape_of(crow), " and ", shape_of(col));
  return (crow.numel() - 1) * block_rows;  // output channels
}

inline ConvPlanView check_conv_plan(const char* op, const Tensor& crow, const Tensor& col, const Tensor& plan,
                                    const ConvGeometry& g) {
  check_type(op, "plan_t", plan, ScalarType::Int);
  check(plan.dim() == 1 && plan.stride(0) == 1 && plan.numel() >= int64_t(sizeof(ConvPlanHeader) / 4) &&
            plan.const_data_ptr<int32_t>()[0] == ConvPlanHeader::expected_magic,
        op, ": expected a plan made by sparseprune::conv2d_plan, got another tensor; build it from crow and col");
  const ConvPlanHeader& h = *reinterpret_cast<const ConvPlanHeader*>(plan.const_data_ptr<int32_t>());
  check(h.geometry == g.as_numbers() && h.rows_of_pattern == crow.numel() - 1 && h.nnz == col.numel() &&
            plan.numel() == ConvPlanView::size(h, g),
        op, ": expected the plan of this pattern and geometry (", crow.numel() - 1, " rows of blocks, ",
        col.numel(), " nonzeros), got one of ", h.rows_of_pattern, " and ", h.nnz,
        " or of another geometry; build it again after changing either");
  return ConvPlanView(plan.const_data_ptr<int32_t>(), g);
}

inline void check_conv_values(const char* op, const Tensor& values, const Tensor& col, ScalarType type) {
  check_type(op, "values", values, type);
  check(values.dim() == 2 && values.size(0) == col.numel(), op, ": expected values.shape == [", col.numel(),
        " (nonzero blocks of the pattern), rows of a block], got ", shape_of(values));
}

// ---- layout ----

// The kernels that pack panels transpose whole ones, in parts that stay in the L2 cache: visit(first feature,
// number of features, first sample, number of samples).
template <class Visit>
void for_parts(int64_t features, int64_t samples, Visit visit) {
  constexpr int64_t part = 512;
  torch::stable::parallel_for(0, (features + part - 1) / part, 8, [&](int64_t begin, int64_t end) {
    for (int64_t f = begin * part; f < std::min(end * part, features); f += part)
      for (int64_t s = 0; s < samples; s += panel_width)
        visit(f, std::min(part, features - f), s, int(std::min<int64_t>(panel_width, samples - s)));
  });
}

// The same numbers with samples innermost or ordinarily laid out.
inline Tensor in_layout(const Tensor& x, bool batch_inner) {
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3), features = c * h * w;
  const bool by_kernels = x.scalar_type() == ScalarType::Float && n % conv_lanes == 0 && x.numel() > 0;
  if (!by_kernels || is_batch_inner_images(x) == batch_inner) return images_in_layout(x, batch_inner);
  if (!batch_inner) {
    const Tensor result = torch::stable::new_empty(x, {n, c, h, w});
    const float* from = data_of<float>(x);
    float* to = mutable_data_of<float>(result);
    for_parts(features, n, [&](int64_t f, int64_t count, int64_t s, int samples) {
      kernels<float>().unpack({from + f * n + s, n, samples}, count, samples,
                              {to + s * features + f, 1, features});
    });
    return result;
  }
  const Tensor ordinary = torch::stable::contiguous(x), result = torch::stable::new_empty(x, {c, h, w, n});
  const float* from = data_of<float>(ordinary);
  float* to = mutable_data_of<float>(result);
  for_parts(features, n, [&](int64_t f, int64_t count, int64_t s, int samples) {
    kernels<float>().pack({from + s * features + f, 1, features}, {}, count, samples,
                          {to + f * n + s, n, samples});
  });
  return samples_first(result);
}

// Kernels want samples innermost wherever there are enough of them to fill vectors.
inline Tensor for_kernels(const Tensor& x) {
  const bool inner = x.size(0) >= few_samples;
  if (inner ? x.stride(0) == 1 : x.stride(3) == 1 || x.size(3) == 1) return x;
  return in_layout(x, inner);
}

// ---- convolutions of single pixels ----
//
// Such a convolution is a product of matrices, W (out_channels x in_channels) times (in_channels x pixels).
// Written as images of one row, all pixels of a sample, and with 16 samples or more those of all samples, follow
// one another, and no lane of a vector is left empty.

// x, which is laid out as the kernels want it, as images of one row; nothing where they would be no different or
// their rows do not follow one another.
inline std::optional<Tensor> as_one_row(const Tensor& x) {
  const int64_t n = x.size(0), c = x.size(1), h = x.size(2), w = x.size(3);
  if (x.numel() == 0) return std::nullopt;
  if (n >= few_samples)
    return is_batch_inner_images(x) ? std::optional(torch::stable::view(samples_last(x), {1, c, 1, h * w * n}))
                                    : std::nullopt;
  return h > 1 && x.stride(2) == w * x.stride(3) ? std::optional(torch::stable::view(x, {n, c, 1, h * w}))
                                                 : std::nullopt;
}

// The images again.
inline Tensor from_one_row(const Tensor& y, int64_t samples, int64_t height, int64_t width) {
  const int64_t c = y.size(1);
  return samples >= few_samples ? samples_first(torch::stable::view(y, {c, height, width, samples}))
                                : torch::stable::view(y, {samples, c, height, width});
}

}  // namespace sparseprune
