// What one core of this processor can do at best, as one line of JSON: the ceilings that kernels are held against.
//
//   fma       fused multiply-adds on registers, float32, GFLOP/s
//   load_fma  one vector loaded from L1 for each of them, which is all that an unstructured sparse kernel can do
//   l1, l2    read bandwidth of those caches, GB/s
//   beyond    read bandwidth of what lies beyond L2: L3 or memory
//
// The kernels are written once, at the top, over the vector type V. The file includes itself for each instruction
// set, so that TARGET and V differ. Vectors are the compiler's own (gcc, clang); products and sums are contracted
// to FMA where the target has it, and otherwise count the same.

#ifdef TARGET

// Twelve accumulators cover the latency of two FMA units and, with both factors, fit 16 registers.
TARGET static float fma_loop(long turns) {
  constexpr int kAccumulators = 12;
  V a[kAccumulators], b, c;
  for (int j = 0; j < kAccumulators; ++j) a[j] = V{} + 1e-3f * float(j);
  b = V{} + 1.0001f;
  c = V{} + 0.9999f;
  for (long i = 0; i < turns; ++i)
    for (int j = 0; j < kAccumulators; ++j) a[j] = a[j] * b + c;
  for (int j = 1; j < kAccumulators; ++j) a[0] += a[j];
  return a[0][0];
}

TARGET static float load_fma_loop(const float* data, long count, long turns) {
  constexpr int kAccumulators = 8;
  constexpr long kFloats = sizeof(V) / sizeof(float);
  V a[kAccumulators] = {}, b = V{} + 1.0001f;
  for (long i = 0; i < turns; ++i)
    for (long k = 0; k < count; k += kAccumulators * kFloats)
      for (int j = 0; j < kAccumulators; ++j) a[j] = *(const V*)(data + k + j * kFloats) * b + a[j];
  for (int j = 1; j < kAccumulators; ++j) a[0] += a[j];
  return a[0][0];
}

TARGET static float read_loop(const float* data, long count, long turns) {
  constexpr int kAccumulators = 8;
  constexpr long kFloats = sizeof(V) / sizeof(float);
  V a[kAccumulators] = {};
  for (long i = 0; i < turns; ++i)
    for (long k = 0; k < count; k += kAccumulators * kFloats)
      for (int j = 0; j < kAccumulators; ++j) a[j] += *(const V*)(data + k + j * kFloats);
  for (int j = 1; j < kAccumulators; ++j) a[0] += a[j];
  return a[0][0];
}

static constexpr Kernels kernels = {NAME, sizeof(V) / sizeof(float), fma_loop, load_fma_loop, read_loop};

#undef TARGET
#undef NAME

#else

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

namespace {

struct Kernels {
  const char* name;
  long floats;  // in a vector
  float (*fma)(long turns);
  float (*load_fma)(const float* data, long count, long turns);
  float (*read)(const float* data, long count, long turns);
};

#if defined(__x86_64__)
namespace avx512 {
typedef float V __attribute__((vector_size(64), may_alias));
#define NAME "avx512"
#define TARGET __attribute__((target("avx512f,prefer-vector-width=512")))
#include "peak.cpp"
}  // namespace avx512

namespace avx2 {
typedef float V __attribute__((vector_size(32), may_alias));
#define NAME "avx2"
#define TARGET __attribute__((target("avx2,fma")))
#include "peak.cpp"
}  // namespace avx2
#endif

namespace baseline {
typedef float V __attribute__((vector_size(16), may_alias));
#define NAME "baseline"
#define TARGET
#include "peak.cpp"
}  // namespace baseline

const Kernels& best() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return avx512::kernels;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return avx2::kernels;
#endif
  return baseline::kernels;
}

constexpr double kShortest = 0.02;  // seconds of a measurement
constexpr int kMeasurements = 5;    // the fastest counts
constexpr long kPassFloats = 128;   // a buffer has a multiple of them: eight vectors of the widest kind

volatile float sink;

// Units of work a second: work(turns) does turns * units of them.
template <class Work>
double rate(double units, Work work) {
  using Clock = std::chrono::steady_clock;
  double highest = 0;
  long turns = 1;
  for (int i = 0; i < kMeasurements;) {
    auto start = Clock::now();
    sink = work(turns);
    double seconds = std::chrono::duration<double>(Clock::now() - start).count();
    if (seconds < kShortest) {
      turns *= 2;
      continue;
    }
    highest = std::max(highest, double(turns) * units / seconds);
    ++i;
  }
  return highest;
}

long cache_bytes(int level, long otherwise) {
  long bytes = 0;
#if defined(_SC_LEVEL1_DCACHE_SIZE)
  bytes = sysconf(level == 1 ? _SC_LEVEL1_DCACHE_SIZE : _SC_LEVEL2_CACHE_SIZE);
#endif
  return bytes > 0 ? bytes : otherwise;
}

}  // namespace

int main() {
  const Kernels& kernels = best();
  const long l1 = cache_bytes(1, 32 << 10), l2 = cache_bytes(2, 512 << 10);
  const long beyond = std::max(64L << 20, 8 * l2);
  std::vector<float> memory(beyond / sizeof(float) + 16, 1.0f);
  float* data = (float*)(((unsigned long long)memory.data() + 63) / 64 * 64);  // the start of a cache line

  auto floats = [](long bytes) { return bytes / long(sizeof(float)) / kPassFloats * kPassFloats; };
  auto bandwidth = [&](long bytes) {
    return rate(double(bytes), [&](long turns) { return kernels.read(data, floats(bytes), turns); });
  };
  double fma = rate(2.0 * 12 * kernels.floats, kernels.fma);
  double load_fma =
      rate(2.0 * floats(l1 / 2), [&](long turns) { return kernels.load_fma(data, floats(l1 / 2), turns); });
  std::printf(
      "{\"isa\": \"%s\", \"fma_gflops\": %.1f, \"load_fma_gflops\": %.1f, \"l1_gbs\": %.1f, \"l2_gbs\": %.1f, "
      "\"beyond_gbs\": %.1f, \"l1_bytes\": %ld, \"l2_bytes\": %ld, \"beyond_bytes\": %ld}\n",
      kernels.name, fma / 1e9, load_fma / 1e9, bandwidth(l1 / 2) / 1e9, bandwidth(l2 / 2) / 1e9,
      bandwidth(beyond) / 1e9, l1, l2, beyond);
}

#endif
