// What operators check of their arguments. A caller's mistake is a std::invalid_argument, which Python sees as a
// ValueError with just this text: the operator, what it expected, what it got, and what to do.
#pragma once
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <sstream>
#include <stdexcept>

#include "common/sizes.h"

namespace sparseprune {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
void check(bool condition, const Parts&... parts) {
  if (condition) return;
  std::ostringstream text;
  (text << ... << parts);
  throw std::invalid_argument(text.str());
}

// ---- words ----

inline const char* name_of(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::Half:
      return "float16";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another type";
  }
}

// The shape of a tensor, which becomes text only where an error shows it.
struct ShapeOf {
  const Tensor& tensor;
};
inline ShapeOf shape_of(const Tensor& t) { return {t}; }
inline std::ostream& operator<<(std::ostream& text, ShapeOf shape) {
  text << "[";
  for (int64_t i = 0; i < shape.tensor.dim(); ++i) text << (i ? ", " : "") << shape.tensor.size(i);
  return text << "]";
}

// ---- numbers ----

inline void check_block_rows(const char* op, int64_t block_rows) {
  check(block_rows == 1 || block_rows == 2 || block_rows == 4 || block_rows == 8 || block_rows == 16, op,
        ": expected block_rows to be 1, 2, 4, 8 or 16, got ", block_rows);
}

// A shape as text, where there is no tensor.
struct Sizes {
  std::initializer_list<int64_t> sizes;
};
inline std::ostream& operator<<(std::ostream& text, Sizes shape) {
  for (const int64_t& size : shape.sizes) text << (&size == shape.sizes.begin() ? "[" : ", ") << size;
  return text << "]";
}

// That the numbers of a tensor can be counted, in any order of its dimensions: one of size 0 does not make up for
// others that are too large.
inline void check_numbers(const char* op, const char* what, std::initializer_list<int64_t> shape) {
  int64_t numbers = 1;
  for (const int64_t size : shape) numbers = product({numbers, std::max<int64_t>(size, 1)});
  check(numbers < most_numbers, op, ": expected ", what, " of fewer than 2^60 numbers, got a shape of ",
        Sizes{shape});
}

// ---- devices: where an operator's tensors have to be, and of which types ----

struct OnCpu {
  static void check_device(const char* op, const char* what, const Tensor& t, const Tensor&) {
    check(t.is_cpu(), op, ": expected ", what,
          " on the CPU like the other tensors, got another device; move all to one device");
  }

  static void check_floating(const char* op, const char* what, const Tensor& t) {
    const ScalarType type = t.scalar_type();
    check(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Double, op,
          ": expected ", what, " to be float32 or bfloat16 (or float64, slow, for checking gradients), got ",
          name_of(type), "; convert with .float()");
    check_device(op, what, t, t);
  }
};

// Emulated: in tests without a GPU, the operators for GPUs get tensors on the CPU.
template <bool emulated>
struct OnGpu {
  static bool is_here(const Tensor& t) { return emulated ? t.is_cpu() : t.is_cuda(); }

  static void check_device(const char* op, const char* what, const Tensor& t, const Tensor& like) {
    check(is_here(t) && t.get_device_index() == like.get_device_index(), op, ": expected ", what,
          " on the GPU of the other tensors, cuda:", like.get_device_index(), ", got ",
          t.is_cpu() ? "one on the CPU" : "one elsewhere", "; move all to one device");
  }

  static void check_floating(const char* op, const char* what, const Tensor& t) {
    const ScalarType type = t.scalar_type();
    check(is_here(t), op, ": expected ", what, " on the GPU of the other tensors, got one elsewhere; ",
          "move all to one device");
    check(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16, op, ": expected ",
          what, " to be float32, float16 or bfloat16 on a GPU, got ", name_of(type),
          type == ScalarType::Double ? ", of which there are kernels on the CPU only" : "",
          "; convert with .float()");
  }
};

// ---- tensors ----

// The checks of one call of an operator. Its device and its type of numbers are those of one tensor, x or g, which
// has to outlive them.
template <class On>
class Checks {
 public:
  Checks(const char* op, const char* what, const Tensor& t) : op(op), type(t.scalar_type()), first_(t) {
    On::check_floating(op, what, t);
  }

  const char* const op;
  const ScalarType type;

  void has_type(const char* what, const Tensor& t, ScalarType expected) const {
    On::check_device(op, what, t, first_);
    check(t.scalar_type() == expected, op, ": expected ", what, " to be ", name_of(expected), ", got ",
          name_of(t.scalar_type()));
  }
  void is_indices(const char* what, const Tensor& t) const { has_type(what, t, ScalarType::Int); }

  // `meaning` says what the number is, for a reader of the error.
  void is_activation(const char* what, const Tensor& t, int64_t features, const char* meaning) const {
    has_type(what, t, type);
    check(t.dim() == 2 && t.size(0) == features, op, ": expected ", what, ".shape == [", features, " (", meaning,
          "), batch], got ", shape_of(t));
    check_numbers(op, what, {t.size(0), t.size(1)});
  }
  void is_images(const char* what, const Tensor& t, int64_t channels, const char* meaning) const {
    has_type(what, t, type);
    check(t.dim() == 4 && t.size(1) == channels, op, ": expected ", what, ".shape == [samples, ", channels, " (",
          meaning, "), height, width], got ", shape_of(t));
    check_numbers(op, what, {t.size(0), t.size(1), t.size(2), t.size(3)});
  }
  void is_vector(const char* what, const Tensor& t, int64_t size, const char* meaning) const {
    check(t.dim() == 1 && t.size(0) == size, op, ": expected ", what, ".shape == [", size, " (", meaning,
          ")], got ", shape_of(t));
  }
  void is_bias(const std::optional<Tensor>& bias, int64_t size, const char* meaning) const {
    if (!bias) return;
    has_type("bias", *bias, type);
    is_vector("bias", *bias, size, meaning);
  }
  void is_values(const Tensor& values, int64_t nnz, int64_t block_rows) const {
    has_type("values", values, type);
    check(values.dim() == 2 && values.size(0) == nnz && values.size(1) == block_rows, op,
          ": expected values.shape == [", nnz, " (nonzero blocks of the pattern), ", block_rows,
          " (rows of a block)], got ", shape_of(values));
  }

  // The rows of a block of values, one block for each of `col`.
  int64_t block_rows_of(const Tensor& values, const Tensor& col) const {
    has_type("values", values, type);
    check(values.dim() == 2 && values.size(0) == col.numel(), op, ": expected values.shape == [", col.numel(),
          " (nonzero blocks of the pattern), rows of a block], got ", shape_of(values));
    return values.size(1);
  }

 private:
  const Tensor& first_;
};

}  // namespace sparseprune
