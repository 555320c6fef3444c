// The threads of an emulated block: a fiber each, which the sanitizers know (simt.h).
#pragma once
#include <sys/mman.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif

struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned a = 1, unsigned b = 1, unsigned c = 1) : x(a), y(b), z(c) {}
};
using cudaStream_t = void*;

namespace simt {

constexpr int warp_size = 32;

// ---- sanitizers ----

// What the emulator itself reads and writes is not the kernel's.
struct Unobserved {
#if defined(__SANITIZE_THREAD__)
  Unobserved() { AnnotateIgnoreReadsBegin("", 0), AnnotateIgnoreWritesBegin("", 0); }
  ~Unobserved() { AnnotateIgnoreWritesEnd("", 0), AnnotateIgnoreReadsEnd("", 0); }
#else
  Unobserved() {}
#endif
};

inline void release(void* tag) {
#if defined(__SANITIZE_THREAD__)
  __tsan_release(tag);
#else
  (void)tag;
#endif
}
inline void acquire(void* tag) {
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(tag);
#else
  (void)tag;
#endif
}

// ---- threads, warps, blocks ----

// An asynchronous copy that has not arrived.
struct Copy {
  void* to;
  unsigned char bytes[16];
  size_t size;
};

struct Fiber {
  ucontext_t context;
  dim3 index;
  int number = 0;  // within the block
  bool done = false;
  std::vector<Copy> uncommitted;
  std::deque<std::vector<Copy>> committed;
  char* stack = nullptr;
  void* fake_stack = nullptr;
  void* thread = nullptr;
};

// A place where threads wait for one another. Tags alternate: one that is released again before all have acquired
// it would order more than the barrier does, and hide races.
struct Barrier {
  int arrived = 0;
  unsigned generation = 0;
  char tags[2];
};

struct Warp {
  std::map<unsigned, Barrier> barriers;  // by the mask of those who take part
  unsigned char values[2][warp_size][16];
  unsigned exchanges[warp_size] = {};
};

struct Block {
  dim3 size, grid, index;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Barrier barrier;
  std::map<const void*, std::unique_ptr<char[]>> shared;
  std::function<void()> body;
  int alive = 0;
  long progress = 0;
  Fiber* current = nullptr;
  ucontext_t main;
  void* main_fake_stack = nullptr;
  const void* main_stack = nullptr;
  size_t main_stack_size = 0;
  void* main_thread = nullptr;
};

inline Block* block = nullptr;
// Tags: all of a launch follows what came before it, and comes before what follows.
inline char launched, finished;

inline std::mt19937& chance() {
  static std::mt19937 generator(0);
  return generator;
}
inline void seed(unsigned number) { chance().seed(number); }

[[noreturn]] inline void die(const char* what) {
  fprintf(stderr, "simt: %s (block %u, %u, %u, thread %d)\n", what, block->index.x, block->index.y, block->index.z,
          block->current ? block->current->number : -1);
  abort();
}

inline Fiber& self() { return *block->current; }
inline int lane() { return self().number % warp_size; }
inline Warp& warp() { return block->warps[self().number / warp_size]; }

constexpr size_t stack_bytes = 64 << 10;

inline void switch_to_main(bool last) {
  Fiber* me = block->current;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(last ? nullptr : &me->fake_stack, block->main_stack, block->main_stack_size);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(block->main_thread, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&me->context, &block->main);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(me->fake_stack, &block->main_stack, &block->main_stack_size);
#endif
  (void)last;
}

inline void switch_to(Fiber& fiber) {
  block->current = &fiber;
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(&block->main_fake_stack, fiber.stack, stack_bytes);
#endif
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(fiber.thread, __tsan_switch_to_fiber_no_sync);
#endif
  swapcontext(&block->main, &fiber.context);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(block->main_fake_stack, nullptr, nullptr);
#endif
  block->current = nullptr;
}

inline void run_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &block->main_stack, &block->main_stack_size);
#endif
  acquire(&launched);
  block->body();
  release(&finished);
  {
    Unobserved unobserved;
    self().done = true;
    --block->alive;
    ++block->progress;
  }
  switch_to_main(true);
}

}  // namespace simt
