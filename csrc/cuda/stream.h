// Where operators run: the device of their tensors and its current stream.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <string>

#include "common/checks.h"
#include "cuda/device.cuh"

#ifdef __CUDACC__
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#endif

namespace sparseprune::cuda {

#ifdef __CUDACC__

inline void check_cuda(cudaError_t error) {
  if (error != cudaSuccess) throw std::runtime_error(std::string("CUDA error: ") + cudaGetErrorString(error));
}

// Torch's stream, from its CUDA library, which is loaded where there are tensors on a GPU. It is not linked
// against, so that this library loads without it.
inline cudaStream_t current_stream(int device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const Function of_torch = [] {
    void* library = dlopen("libtorch_cuda.so", RTLD_LAZY | RTLD_NOLOAD);
    return library ? reinterpret_cast<Function>(dlsym(library, "aoti_torch_get_current_cuda_stream")) : nullptr;
  }();
  if (!of_torch)
    throw std::runtime_error("libtorch_cuda.so with aoti_torch_get_current_cuda_stream is not loaded");
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(of_torch(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Makes the device of a tensor the current one for as long as it lives, and names its current stream.
class OnDeviceOf {
 public:
  OnDeviceOf(const char* op, const Tensor& t) : guard_(t.get_device_index()) {
    const int device = t.get_device_index();
    check_cuda(cudaSetDevice(device));  // this library has a CUDA runtime of its own
    int major = 0, minor = 0;
    check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
    check_cuda(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device));
    check(major >= 8, op, ": expected a GPU of compute capability 8.0 or higher (Ampere, 2020), got ", major, ".",
          minor, "; use the CPU");
    stream = current_stream(device);
  }
  cudaStream_t stream;

  // Call after launching.
  void check_launches() const { check_cuda(cudaGetLastError()); }
  // What is at an address of the device, when all that was launched is done.
  template <class T>
  T read(const T* from) const {
    T result;
    check_cuda(cudaMemcpyAsync(&result, from, sizeof result, cudaMemcpyDeviceToHost, stream));
    check_cuda(cudaStreamSynchronize(stream));
    return result;
  }

 private:
  torch::stable::accelerator::DeviceGuard guard_;
};

#else

class OnDeviceOf {
 public:
  OnDeviceOf(const char*, const Tensor&) {}
  cudaStream_t stream = nullptr;
  void check_launches() const {}
  template <class T>
  T read(const T* from) const {
    return *from;
  }
};

#endif

}  // namespace sparseprune::cuda
