// What kernels on tensor cores are made of: mma.m16n8k16, ldmatrix and cp.async, which all GPUs since sm_80 have.
// For other compilers, the same through the emulator's exchange of values and its deferred copies.
//
// Numbers are those of half precision, two in 32 bits. Of a 16 x 16 matrix A (row by row), a 16 x 8 matrix B and a
// 16 x 8 matrix D, lane 4 g + t of a warp holds
//   a[i]: A[g + 8 (i % 2)][2 t + 8 (i / 2)] and its right neighbour
//   b[i]: B[2 t + 8 i][g] and the one below
//   d[i]: D[g + 8 (i / 2)][2 t + i % 2]
#pragma once
#include "cuda/device.cuh"

namespace sparseprune::cuda {

#ifdef __CUDACC__

__device__ __forceinline__ uint32_t shared_address(const void* p) { return uint32_t(__cvta_generic_to_shared(p)); }

// d += a b
template <class T>
__device__ __forceinline__ void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  if constexpr (std::is_same_v<T, Half>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// Matrices of 8 x 8 from shared memory, whose rows begin where lanes say: row r of matrix i where lane 8 i + r
// says. Lane 4 g + t gets [g][2 t] and [g][2 t + 1] of each, or of its transpose.
template <bool transposed>
__device__ __forceinline__ void load_matrices(uint32_t (&to)[4], const void* row) {
  if constexpr (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3},[%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row))
                 : "memory");
}
template <bool transposed>
__device__ __forceinline__ void load_matrices(uint32_t (&to)[2], const void* row) {
  if constexpr (transposed)
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.trans.shared.b16 {%0,%1},[%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(shared_address(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1},[%2];"
                 : "=r"(to[0]), "=r"(to[1])
                 : "r"(shared_address(row))
                 : "memory");
}

// 16 bytes to shared memory, which are there after wait_for_copies; zeros, and nothing read, if not `there`.
__device__ __forceinline__ void copy_later(void* to, const void* from, bool there) {
  asm volatile("cp.async.cg.shared.global [%0],[%1],16,%2;" ::"r"(shared_address(to)), "l"(from),
               "r"(there ? 16 : 0)
               : "memory");
}
__device__ __forceinline__ void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// The calling thread's copies, but for the last `left` groups of them. Others' need a barrier after that.
template <int left>
__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(left) : "memory");
}

#else

// What each lane of the warp gives.
template <class Value>
struct OfLanes {
  Value at[warp_size];

  explicit OfLanes(Value own) {
    const auto values = simt::publish(0xffffffffu, own);
    simt::Unobserved unobserved;
    for (int lane = 0; lane < warp_size; ++lane) memcpy(&at[lane], values[lane], sizeof(Value));
  }
};

template <class T>
float number_of(uint32_t pair, int i) {
  const uint16_t bits = uint16_t(pair >> 16 * i);
  T number;
  memcpy(&number, &bits, sizeof bits);
  return float(number);
}

template <class T>
void multiply_add(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Pairs {
    uint32_t at[4];
  };
  const OfLanes<Pairs> as(Pairs{{a[0], a[1], a[2], a[3]}}), bs(Pairs{{b[0], b[1], 0, 0}});
  const int g = simt::lane() / 4, t = simt::lane() % 4;
  for (int i = 0; i < 4; ++i)
    for (int k = 0; k < 16; ++k) {
      const int row = g + 8 * (i / 2), column = 2 * t + i % 2;
      d[i] += number_of<T>(as.at[row % 8 * 4 + k % 8 / 2].at[row / 8 + k / 8 * 2], k % 2) *
              number_of<T>(bs.at[column * 4 + k % 8 / 2].at[k / 8], k % 2);
    }
}

template <bool transposed, int n>
void load_matrices(uint32_t (&to)[n], const void* row) {
  const OfLanes<const char*> rows(static_cast<const char*>(row));
  const int g = simt::lane() / 4, t = simt::lane() % 4;
  for (int i = 0; i < n; ++i) {
    uint16_t pair[2];
    for (int j = 0; j < 2; ++j) {
      const char* start = rows.at[8 * i + (transposed ? 2 * t + j : g)];
      if (reinterpret_cast<uintptr_t>(start) % 16) simt::die("a row of a matrix is not aligned to 16 bytes");
      memcpy(&pair[j], start + 2 * (transposed ? g : 2 * t + j), 2);
    }
    to[i] = pair[0] | uint32_t(pair[1]) << 16;
  }
}

inline void copy_later(void* to, const void* from, bool there) {
  alignas(16) static const char zeros[16] = {};
  simt::copy_later(to, there ? from : zeros, 16);
}
inline void commit_copies() { simt::commit_copies(); }
template <int left>
void wait_for_copies() {
  simt::wait_for_copies(left);
}

#endif

// ---- what such kernels share ----

constexpr int mma_warps = 4, mma_threads = mma_warps * warp_size;
constexpr int mma_depth = 16;  // numbers that one instruction adds up
constexpr int mma_chunk = 8;   // numbers of half precision in 16 bytes

template <class T, int V>
constexpr bool for_tensor_cores = V >= 8 && !std::is_same_v<T, float>;

// Whether every row starts where 16 bytes may be loaded at once.
inline bool chunks_fit(int64_t samples, const void* a, const void* b, const void* c) {
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  return samples % mma_chunk == 0 && aligned(a) && aligned(b) && aligned(c);
}

}  // namespace sparseprune::cuda
