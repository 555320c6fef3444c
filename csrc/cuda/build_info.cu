#include "cuda/build_info.h"

namespace sparseprune::cuda {

std::string toolkit() { return std::to_string(__CUDACC_VER_MAJOR__) + "." + std::to_string(__CUDACC_VER_MINOR__); }

std::string architectures() {
  std::string text;
  for (const int architecture : {__CUDA_ARCH_LIST__})
    text += (text.empty() ? "sm_" : ", sm_") + std::to_string(architecture / 10);
  return text;
}

}  // namespace sparseprune::cuda
