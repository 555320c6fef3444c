// A thread's buffers.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>

#include "cpu/kernels/kernels.h"

namespace sparseprune {

enum Slot { gathered_block, row_tile, gradient_tile, slots };

// A buffer of the calling thread that keeps its memory between calls: fresh pages cost more than the arithmetic.
template <class Scalar>
Panel<Scalar> workspace(Slot slot, int64_t features, int width) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> memory[slots];
  thread_local size_t capacity[slots] = {};
  const size_t bytes = (size_t(std::max<int64_t>(features, 1)) * width * sizeof(Scalar) + 63) / 64 * 64;
  if (bytes > capacity[slot]) {
    memory[slot].reset(std::aligned_alloc(64, bytes));
    capacity[slot] = memory[slot] ? bytes : 0;
    if (!memory[slot]) throw std::bad_alloc();
  }
  return {static_cast<Scalar*>(memory[slot].get()), width, width};
}

}  // namespace sparseprune
