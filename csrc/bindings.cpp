// The Python module sparseprune._C: facts about this build. Loading it registers the tensor operators (ops.cpp).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/headeronly/version.h>

#include "common/known_plans.h"
#include "cpu/kernels/isa.h"

#ifdef SPARSEPRUNE_CUDA
#include "cuda/build_info.h"
#endif

#define STRING_OF(x) #x
#define STRING(x) STRING_OF(x)

namespace {

pybind11::dict build_info() {
  pybind11::dict info;
#if defined(__VERSION__)
  info["compiler"] = __VERSION__;
#endif
  info["cpp_standard"] = __cplusplus;
  info["torch_headers"] =
      STRING(TORCH_VERSION_MAJOR) "." STRING(TORCH_VERSION_MINOR) "." STRING(TORCH_VERSION_PATCH);
  info["stable_abi"] = STRING(TORCH_TARGET_VERSION);
#ifdef SPARSEPRUNE_CUDA
  info["cuda"] = sparseprune::cuda::toolkit();
  info["cuda_architectures"] = sparseprune::cuda::architectures();
#endif
  return info;
}

}  // namespace

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  m.def("isa", [] { return std::string(sparseprune::current_isa().name); }, "Instruction set in use.");
  m.def("available_isas", &sparseprune::available_isas,
        "Instruction sets that this processor can run, best first.");
  m.def("set_isa", &sparseprune::set_isa, pybind11::arg("name"), "Use this instruction set from now on.");
#ifdef SPARSEPRUNE_CUDA
  constexpr bool with_cuda = true;
#else
  constexpr bool with_cuda = false;
#endif
  m.def("has_cuda", [] { return with_cuda; }, "Whether CUDA kernels are compiled in (not whether a GPU is here).");
  m.def("forget_plan", &sparseprune::forget_plan, pybind11::arg("address"),
        "Let go of the memory of a plan that nobody holds any more.");
  m.def("build_info", &build_info, "Compiler, C++ standard, torch headers and ABI target of this build.");
}
