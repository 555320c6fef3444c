// A CUDA kernel on the CPU: one fiber for each of its threads, one block after the other.
//
// The kernels of csrc/cuda are compiled by nvcc for a GPU and, with this header in place of CUDA's, by any C++
// compiler for the tests. What a GPU leaves undefined is an error here, or is made to differ: shared memory starts
// as NaN, threads of a block run in an order of chance (seed()), asynchronous copies arrive early or late by
// chance, and a thread that waits for others which never come ends the program. Each shared array is an allocation
// of its own, so that AddressSanitizer sees what leaves it; for ThreadSanitizer fibers are threads, which only the
// kernel's own synchronisation orders, within a block, and nothing between blocks: it reports races.
//
// What cannot be seen here: coalescing, bank conflicts, occupancy, weak memory ordering, speed.
#pragma once
#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

#include "fibers.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)

namespace simt {

// ---- synchronisation ----

// `ordered`: what threads did before, all see after.
inline void wait_for(Barrier& barrier, int threads, bool ordered = true) {
  Unobserved unobserved;
  const unsigned generation = barrier.generation;
  void* tag = &barrier.tags[generation % 2];
  if (ordered) release(tag);
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    ++barrier.generation;
    ++block->progress;
  } else {
    while (barrier.generation == generation) switch_to_main(false);
  }
  if (ordered) acquire(tag);
}

inline void wait_for_block() { wait_for(block->barrier, int(block->fibers.size())); }

inline void wait_for_warp(unsigned mask, bool ordered = true) {
  Unobserved unobserved;
  if (!(mask >> lane() & 1)) die("the calling lane is not in the mask");
  wait_for(warp().barriers[mask], __builtin_popcount(mask), ordered);
}

// What each lane of the mask gives, [lane][bytes]; valid until the same lanes exchange values again. Orders no
// memory: neither do shuffles, ldmatrix and mma on a GPU.
template <class T>
const unsigned char (*publish(unsigned mask, T value))[16] {
  static_assert(sizeof(T) <= 16);
  Unobserved unobserved;
  const int me = lane();
  Warp& w = warp();
  const unsigned turn = w.exchanges[me]++ % 2;  // a slow lane may still read the values of the turn before
  memcpy(w.values[turn][me], &value, sizeof value);
  wait_for_warp(mask, false);
  return w.values[turn];
}

// The value that lane `from` gives, or one's own where it takes no part (on a GPU: undefined).
template <class T>
T exchange(unsigned mask, T value, int from) {
  const auto values = publish(mask, value);
  if (from < 0 || from >= warp_size || !(mask >> from & 1)) return value;
  Unobserved unobserved;
  T result;
  memcpy(&result, values[from], sizeof result);
  return result;
}

// ---- memory ----

// A shared array, by the address of something static beside its declaration.
template <class T, int n>
T (&shared(const void* key))
[n] {
  Unobserved unobserved;
  std::unique_ptr<char[]>& data = block->shared[key];
  if (!data) {
    data.reset(new char[sizeof(T) * n]);  // aligned to 16 bytes
    memset(data.get(), 0xff, sizeof(T) * n);
  }
  return *reinterpret_cast<T(*)[n]>(data.get());
}

// A copy to shared memory that is there after wait_for_copies: by chance at once, or not before.
inline void copy_later(void* to, const void* from, size_t size) {
  if (reinterpret_cast<uintptr_t>(to) % size || reinterpret_cast<uintptr_t>(from) % size)
    die("an asynchronous copy is not aligned to its size");
  Copy copy{to, {}, size};
  memcpy(copy.bytes, from, size);
  bool now;
  {
    Unobserved unobserved;
    now = chance()() % 2;
    if (!now) self().uncommitted.push_back(copy);
  }
  if (now) memcpy(to, copy.bytes, size);
}
inline void commit_copies() {
  Unobserved unobserved;
  self().committed.push_back(std::move(self().uncommitted));
  self().uncommitted.clear();
}
inline void wait_for_copies(size_t groups_left) {
  while (self().committed.size() > groups_left) {
    for (const Copy& copy : self().committed.front()) memcpy(copy.to, copy.bytes, copy.size);
    Unobserved unobserved;
    self().committed.pop_front();
  }
}

// ---- launching ----

// ThreadSanitizer takes a thread that has the number of one that is gone for the same: those of one launch stay as
// long as it has numbers to give.
inline void retire(void* thread) {
#if defined(__SANITIZE_THREAD__)
  static std::deque<void*> retired;
  constexpr size_t most = 4096;
  retired.push_back(thread);
  if (retired.size() > most) {
    __tsan_destroy_fiber(retired.front());
    retired.pop_front();
  }
#else
  (void)thread;
#endif
}

inline void run_block(Block& here, dim3 grid, dim3 size, dim3 index, const std::function<void()>& body) {
  block = &here;
  here.size = size;
  here.grid = grid;
  here.index = index;
  here.body = body;
  const int threads = int(size.x * size.y * size.z);
  here.fibers = std::vector<Fiber>(size_t(threads));
  here.warps = std::vector<Warp>(size_t((threads + warp_size - 1) / warp_size));
  here.alive = threads;
  // Fresh memory: sanitizers forget what was there.
  void* stacks =
      mmap(nullptr, size_t(threads) * stack_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (stacks == MAP_FAILED) die("no memory for stacks");
#if defined(__SANITIZE_THREAD__)
  here.main_thread = __tsan_get_current_fiber();
#endif
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = here.fibers[size_t(i)];
    fiber.number = i;
    fiber.index = dim3(unsigned(i) % size.x, unsigned(i) / size.x % size.y, unsigned(i) / (size.x * size.y));
    fiber.stack = static_cast<char*>(stacks) + size_t(i) * stack_bytes;
#if defined(__SANITIZE_THREAD__)
    fiber.thread = __tsan_create_fiber(0);
#endif
    getcontext(&fiber.context);
    fiber.context.uc_stack.ss_sp = fiber.stack;
    fiber.context.uc_stack.ss_size = stack_bytes;
    fiber.context.uc_link = nullptr;
    makecontext(&fiber.context, run_fiber, 0);
  }
  std::vector<Fiber*> order;
  for (Fiber& fiber : here.fibers) order.push_back(&fiber);
  while (here.alive > 0) {
    const long before = here.progress;
    std::shuffle(order.begin(), order.end(), chance());
    for (Fiber* fiber : order)
      if (!fiber->done) switch_to(*fiber);
    if (here.alive > 0 && here.progress == before)
      die("threads wait for others that never come: a divergent barrier or shuffle, or a thread that left early");
  }
  for (const Fiber& fiber : here.fibers)
    if (!fiber.uncommitted.empty() || !fiber.committed.empty()) die("a thread left with copies on their way");
  for (const Fiber& fiber : here.fibers) retire(fiber.thread);
  munmap(stacks, size_t(threads) * stack_bytes);
  here.fibers.clear();
  block = nullptr;
}

template <class... Parameters, class... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 size, cudaStream_t, Arguments... arguments) {
  release(&launched);
  {
    Unobserved unobserved;
    std::vector<dim3> blocks;
    for (unsigned z = 0; z < grid.z; ++z)
      for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) blocks.push_back(dim3(x, y, z));
    std::shuffle(blocks.begin(), blocks.end(), chance());
    // Blocks stay until all are done: what one of them synchronised at an address must not order another.
    std::vector<std::unique_ptr<Block>> done;
    for (const dim3& index : blocks) {
      done.push_back(std::make_unique<Block>());
      run_block(*done.back(), grid, size, index, [&] { kernel(Parameters(arguments)...); });
    }
  }
  acquire(&finished);
}

}  // namespace simt

// ---- CUDA's names ----

#define threadIdx (simt::self().index)
#define blockIdx (simt::block->index)
#define blockDim (simt::block->size)
#define gridDim (simt::block->grid)

inline void __syncthreads() { simt::wait_for_block(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { simt::wait_for_warp(mask); }

template <class T>
T __shfl_sync(unsigned mask, T value, int from, int width = 32) {
  return simt::exchange(mask, value, simt::lane() / width * width + from % width);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int me = simt::lane(), from = me + int(by);
  return simt::exchange(mask, value, from / width == me / width ? from : me);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned by, int width = 32) {
  const int me = simt::lane(), from = me - int(by);
  return simt::exchange(mask, value, from >= me / width * width ? from : me);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int by, int width = 32) {
  const int me = simt::lane(), from = me ^ by;
  return simt::exchange(mask, value, from / width <= me / width ? from : me);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  const auto votes = simt::publish(mask, bool(predicate));
  simt::Unobserved unobserved;
  unsigned result = 0;
  for (int from = 0; from < simt::warp_size; ++from)
    result |= unsigned(mask >> from & 1 && votes[from][0]) << from;
  return result;
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

template <class T>
T atomicAdd(T* at, T value) {
  T before, after;
  __atomic_load(at, &before, __ATOMIC_RELAXED);
  do after = before + value;
  while (!__atomic_compare_exchange(at, &before, &after, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED));
  return before;
}
template <class T>
T atomicMax(T* at, T value) {
  T before;
  __atomic_load(at, &before, __ATOMIC_RELAXED);
  while (before < value &&
         !__atomic_compare_exchange_n(at, &before, value, false, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return before;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __clz(int x) { return x ? __builtin_clz(unsigned(x)) : 32; }
inline int __ffs(int x) { return __builtin_ffs(x); }
