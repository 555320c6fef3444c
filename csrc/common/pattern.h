// Patterns of sparse weights in CSR form, checked: kernels trust the indices of what passed here.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <cstdint>

namespace sparseprune {

struct Csr {
  int32_t rows, cols, nnz;
  const int32_t* start;  // [rows + 1]
  const int32_t* col;    // [nnz]
};

// A pattern of blocks of `block_rows` x 1 over contiguous tensors, which must outlive it.
Csr checked_pattern(const char* op, const torch::stable::Tensor& crow, const torch::stable::Tensor& col,
                    int64_t cols, int64_t block_rows);

// Throws unless start[0 .. rows] ascends from 0 to nnz.
void check_starts(const char* op, const int32_t* start, int32_t rows, int64_t nnz);

}  // namespace sparseprune
