// Every kernel instance that the operators launch, for what the compiler says of registers, spills and
// instructions.
#include "cuda/sddmm.cuh"
#include "cuda/spmm.cuh"
#include "cuda/topk.cuh"

namespace sparseprune::cuda {

template <class T, int V>
void all_of(Rows rows, const T* a, T* b, float* workspace) {
  launch_spmm<T, V>(rows, a, a, 0, a, true, b, nullptr);
  launch_spmm_t<T, V>(rows, rows.index, a, a, 0, b, nullptr);
  launch_sddmm<T, V>(rows, 0, a, a, 0, workspace, b, nullptr);
}

template <class T>
void all_blocks(Rows rows, const T* a, T* b, float* workspace) {
  all_of<T, 1>(rows, a, b, workspace);
  all_of<T, 2>(rows, a, b, workspace);
  all_of<T, 4>(rows, a, b, workspace);
  all_of<T, 8>(rows, a, b, workspace);
  all_of<T, 16>(rows, a, b, workspace);
}

template void all_blocks(Rows, const float*, float*, float*);
template void all_blocks(Rows, const Half*, Half*, float*);
template void all_blocks(Rows, const BFloat16*, BFloat16*, float*);
template void launch_topk(const Scores<float>*, int, int64_t, Selection*, int32_t*, unsigned long long*, cudaStream_t);
template void launch_topk(const Scores<double>*, int, int64_t, Selection*, int32_t*, unsigned long long*, cudaStream_t);

}  // namespace sparseprune::cuda
