// What the CUDA operators share: the device and stream they run on, checks of their arguments, views of tensors.
#pragma once
#include <torch/csrc/stable/library.h>

#include <optional>
#include <vector>

#include "common/layout.h"
#include "cuda/device.cuh"
#include "cuda/linear/spmm.cuh"

#ifdef __CUDACC__
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#define REGISTER_FOR_CUDA(m) STABLE_TORCH_LIBRARY_IMPL(sparseprune, CUDA, m)
#else
#define REGISTER_FOR_CUDA(m) STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, m)  // emulated
#endif

namespace sparseprune::cuda {

// ---- where operators run ----

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

inline bool is_here(const Tensor& t) { return t.is_cuda(); }

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

inline bool is_here(const Tensor& t) { return t.is_cpu(); }

#endif

// ---- checks ----

inline void check_device(const char* op, const char* what, const Tensor& t, const Tensor& like) {
  check(is_here(t) && t.get_device_index() == like.get_device_index(), op, ": expected ", what,
        " on the GPU of the other tensors, cuda:", like.get_device_index(), ", got ",
        t.is_cpu() ? "one on the CPU" : "one elsewhere", "; move all to one device");
}

inline void check_type(const char* op, const char* what, const Tensor& t, ScalarType expected,
                       const Tensor& like) {
  check_device(op, what, t, like);
  check_dtype(op, what, t, expected);
}

inline ScalarType check_floating(const char* op, const char* what, const Tensor& t) {
  const ScalarType type = t.scalar_type();
  check(is_here(t), op, ": expected ", what, " on the GPU of the other tensors, got one elsewhere; ",
        "move all to one device");
  check(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16, op, ": expected ",
        what, " to be float32, float16 or bfloat16 on a GPU, got ", name_of(type),
        type == ScalarType::Double ? ", of which there are kernels on the CPU only" : "",
        "; convert with .float()");
  return type;
}

// ---- from tensors to what kernels see ----

template <class T>
const T* data_of(const Tensor& t) {
  return static_cast<const T*>(t.const_data_ptr());
}
template <class T>
T* mutable_data_of(const Tensor& t) {
  return static_cast<T*>(t.mutable_data_ptr());
}
template <class T>
const T* data_or_null(const std::optional<Tensor>& t) {
  return t ? data_of<T>(*t) : nullptr;
}

// Calls f(a number of the tensors' type).
template <class F>
void dispatch(ScalarType type, F f) {
  type == ScalarType::Half ? f(Half{}) : type == ScalarType::BFloat16 ? f(BFloat16{}) : f(float{});
}

// Calls f(V as a constant).
template <class F>
void for_block_rows(int64_t V, F f) {
  switch (V) {
    case 1:
      return f(std::integral_constant<int, 1>{});
    case 2:
      return f(std::integral_constant<int, 2>{});
    case 4:
      return f(std::integral_constant<int, 4>{});
    case 8:
      return f(std::integral_constant<int, 8>{});
    default:
      return f(std::integral_constant<int, 16>{});
  }
}

// Workspaces: never null, and never of a size that depends on the numbers.
inline Tensor new_floats(const Tensor& like, int64_t n) {
  return torch::stable::new_empty(like, {n + 1}, ScalarType::Float);
}

}  // namespace sparseprune::cuda
