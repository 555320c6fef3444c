// The division of work among threads.
#pragma once
#include <torch/csrc/stable/ops.h>

#include <cstdint>
#include <initializer_list>

#include "common/sizes.h"

namespace sparseprune {

// Multiply-adds below which a second thread costs more than it saves.
constexpr int64_t serial_work = 1 << 15;

// For the product of these numbers of multiply-adds.
inline int64_t worthwhile_threads(std::initializer_list<int64_t> multiply_adds) {
  return product(multiply_adds) < serial_work ? 1 : int64_t(torch::stable::get_num_threads());
}

struct Range {
  int32_t begin, end;
};

// Rows of part `part` of `parts`, of about equal work: nonzeros, and the layout of a row, about 8 nonzeros' time.
template <class NonzerosBefore>
Range rows_of_part(int32_t rows, int64_t block_rows, int64_t part, int64_t parts, NonzerosBefore nonzeros_before) {
  const auto work_before = [&](int32_t row) { return nonzeros_before(row) * block_rows + 8 * int64_t(row); };
  const int64_t total = work_before(rows);
  const auto boundary = [&](int64_t i) {
    int32_t low = 0, high = rows;
    while (low < high) {
      const int32_t middle = low + (high - low) / 2;
      work_before(middle)* parts < total* i ? low = middle + 1 : high = middle;
    }
    return low;
  };
  return {part == 0 ? 0 : boundary(part), part + 1 == parts ? rows : boundary(part + 1)};
}

}  // namespace sparseprune
