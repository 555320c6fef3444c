// Arithmetic of sizes that does not overflow. No torch headers.
#pragma once
#include <cstdint>
#include <initializer_list>

namespace sparseprune {

// Tensors have fewer numbers than this, so that their bytes, and sums over a few of them, can be counted too.
constexpr int64_t most_numbers = int64_t(1) << 60;

// The product of sizes, none of them negative, or the largest number there is where it is larger.
constexpr int64_t product(std::initializer_list<int64_t> sizes) {
  int64_t result = 1;
  for (const int64_t size : sizes) {
    if (size == 0) return 0;
    result = result > INT64_MAX / size ? INT64_MAX : result * size;
  }
  return result;
}

}  // namespace sparseprune
