// Facts about the CUDA part of this build.
#pragma once
#include <string>

namespace sparseprune::cuda {

std::string toolkit();        // version of nvcc
std::string architectures();  // for which there is code, like "sm_80, sm_90"

}  // namespace sparseprune::cuda
