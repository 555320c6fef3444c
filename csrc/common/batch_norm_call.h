// A call of batch normalisation, or of its gradients, checked: the same on any device.
#pragma once
#include <initializer_list>
#include <optional>

#include "common/checks.h"
#include "common/layout.h"

namespace sparseprune {

// An argument by its name, null where it was not given.
struct Given {
  const char* name;
  const Tensor* tensor;

  Given(const char* name, const Tensor& t) : name(name), tensor(&t) {}
  Given(const char* name, const std::optional<Tensor>& t) : name(name), tensor(t ? &*t : nullptr) {}
};

// The type of statistics, and of what parameters may be beside that of x.
inline ScalarType type_of_statistics(ScalarType type) {
  return type == ScalarType::Double ? type : ScalarType::Float;
}

// The images x, beside tensors with a number for each of its channels, and beside others of its shape.
template <class On>
Images checked_batch_norm(const Checks<On>& checks, const Tensor& x, std::initializer_list<Given> by_channel,
                          std::initializer_list<Given> like_x) {
  const char* op = checks.op;
  check(x.dim() == 4, op, ": expected x.shape == [samples, channels, height, width], got ", x.dim(),
        " dimensions");
  check_numbers(op, "x", {x.size(0), x.size(1), x.size(2), x.size(3)});
  check(x.size(1) <= INT32_MAX, op, ": expected fewer than 2^31 channels, got ", x.size(1));
  const Images images(x);
  for (const auto& [name, t] : by_channel)
    if (t) {
      checks.has_type(name, *t, t->scalar_type() == checks.type ? checks.type : type_of_statistics(checks.type));
      checks.is_vector(name, *t, images.channels, "channels");
    }
  for (const auto& [name, t] : like_x)
    if (t) {
      checks.has_type(name, *t, checks.type);
      check(std::ranges::equal(t->sizes(), x.sizes()), op, ": expected ", name, ".shape == ", shape_of(x),
            " (that of x), got ", shape_of(*t));
    }
  return images;
}

}  // namespace sparseprune
