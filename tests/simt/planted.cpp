// Kernels with a bug planted in them, to see that the emulator (simt.h) and the sanitizers catch it.
//
//   planted BUG    none must pass; each of the others must be reported
#include <cmath>
#include <cstdio>
#include <string>
#include <vector>

#include "cuda/device.cuh"

namespace sparseprune::cuda {
namespace {

enum Bug {
  none,
  no_barrier,
  no_warp_barrier,
  between_blocks,
  beyond,
  unset,
  misaligned,
  divergent,
  left_early,
  not_waited
};
const char* const names[] = {"none",  "no_barrier", "no_warp_barrier", "between_blocks", "beyond",
                             "unset", "misaligned", "divergent",       "left_early",     "not_waited"};

constexpr int threads = 64;

// out = the sum of 64 numbers, by way of whatever may go wrong
template <Bug bug>
__global__ void sum_kernel(const float* numbers, float* out) {
  SHARED_ARRAY(float, staged, threads);
  SHARED_ARRAY(float, of_warp, threads / warp_size);
  const int me = int(threadIdx.x);
  if (bug == left_early && me == 5) return;
  if (bug == not_waited) {
    simt::copy_later(&staged[me], numbers + me, sizeof(float));
    simt::commit_copies();
  } else if (bug != unset || me != 7) {
    staged[bug == beyond ? me + 1 : me] = numbers[me];
  }
  if (bug != no_barrier && (bug != divergent || me < warp_size)) __syncthreads();
  float sum = staged[threads - 1 - me];
  if (bug == not_waited) simt::wait_for_copies(0);
  if (bug == misaligned) {
    float pair[2];
    load<float, 2>(numbers + me % 31 * 2 + 1, pair);
    sum += 0 * pair[0];
  }
  __syncthreads();
  staged[me] = sum;
  if (bug != no_warp_barrier) __syncwarp();
  sum = staged[me ^ 1];  // of the same warp
  for (int by = warp_size / 2; by > 0; by /= 2) sum += __shfl_down_sync(0xffffffffu, sum, unsigned(by));
  if (me % warp_size == 0) of_warp[me / warp_size] = sum;
  __syncthreads();
  if (me == 0) {
    const float all = of_warp[0] + of_warp[1];
    if (bug == between_blocks)
      *out = *out + all;  // every block
    else if (blockIdx.x == 0)
      *out = all;
  }
}

template <Bug bug>
int run() {
  alignas(16) float numbers[threads + 2];
  float expected = 0;
  for (int i = 0; i < threads + 2; ++i) numbers[i] = float(i % 7);
  for (int i = 0; i < threads; ++i) expected += numbers[i];
  float out = 0;
  launch(sum_kernel<bug>, dim3(bug == between_blocks ? 3 : 1), dim3(threads), nullptr, numbers, &out);
  if (bug == between_blocks) return 0;
  if (out != expected) return fprintf(stderr, "wrong result: %g, expected %g\n", double(out), double(expected)), 1;
  return 0;
}

}  // namespace
}  // namespace sparseprune::cuda

int main(int argc, char** argv) {
  using namespace sparseprune::cuda;
  int (*const runs[])() = {run<none>,       run<no_barrier>, run<no_warp_barrier>, run<between_blocks>,
                           run<beyond>,     run<unset>,      run<misaligned>,      run<divergent>,
                           run<left_early>, run<not_waited>};
  for (int bug = none; bug <= not_waited; ++bug)
    if (argc == 2 && std::string(argv[1]) == names[bug]) {
      for (unsigned seed = 0; seed < 4; ++seed) {
        simt::seed(seed);
        if (const int failed = runs[bug]()) return failed;
      }
      return 0;
    }
  return fprintf(stderr, "planted: which bug?\n"), 2;
}
