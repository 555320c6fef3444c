// Memory of exactly the size that a kernel's contract gives it: one element beyond it is a fault.
//
// AddressSanitizer watches the heap, but knows nothing of masked and gathered vector accesses; a page that must
// not be touched, right behind the buffer or right before it, catches those in any build.
#pragma once
#include <signal.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <vector>

enum class Placement { heap, before_guard, after_guard };
inline Placement placement = Placement::heap;

// ---- what is being tested, for whoever reports a failure ----

inline char current_case[256];

[[gnu::format(printf, 1, 2)]] inline void describe(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(current_case, sizeof current_case, format, arguments);
  va_end(arguments);
}

// ---- pages ----

struct Pages {
  char* first;  // between two pages that must not be touched
  size_t bytes;
};

inline const size_t page_bytes = size_t(sysconf(_SC_PAGESIZE));

class PagePool {  // mapping and unmapping would take longer than the tests
 public:
  Pages take(size_t bytes) {
    bytes = (bytes + page_bytes - 1) / page_bytes * page_bytes;
    std::vector<char*>& unused = unused_[bytes];
    if (unused.empty()) unused.push_back(map(bytes));
    char* first = unused.back();
    unused.pop_back();
    return {first, bytes};
  }
  void give_back(Pages pages) { unused_[pages.bytes].push_back(pages.first); }

 private:
  static char* map(size_t bytes) {
    void* all = mmap(nullptr, bytes + 2 * page_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char* first = static_cast<char*>(all) + page_bytes;
    // QEMU refuses to protect no byte.
    if (all == MAP_FAILED || (bytes && mprotect(first, bytes, PROT_READ | PROT_WRITE) != 0)) {
      perror("guard pages");
      exit(2);
    }
    return first;
  }
  std::map<size_t, std::vector<char*>> unused_;
};
inline PagePool page_pool;

// ---- buffers ----

struct Extent {  // of a living buffer, for the report of a fault
  const char* name;
  const char* data;
  size_t bytes, element_bytes;
};
inline std::vector<Extent> extents;

// `size` numbers, all of one bit pattern until they are set: NaN, so that a sum into which one leaks shows it.
template <class T>
class Buffer {
 public:
  Buffer(const char* name, int64_t size) : size_(size) {
    const size_t bytes = size_t(size) * sizeof(T);
    if (placement == Placement::heap) {
      heap_ = static_cast<char*>(malloc(bytes ? bytes : empty));
      data_ = reinterpret_cast<T*>(bytes ? heap_ : heap_ + empty);
    } else {
      pages_ = page_pool.take(bytes);
      data_ =
          reinterpret_cast<T*>(pages_.first + (placement == Placement::before_guard ? pages_.bytes - bytes : 0));
    }
    if (bytes) memset(static_cast<void*>(data_), unset, bytes);
    extents.push_back({name, reinterpret_cast<const char*>(data_), bytes, sizeof(T)});
  }
  ~Buffer() {
    for (size_t i = extents.size(); i-- > 0;)
      if (extents[i].data == reinterpret_cast<const char*>(data_)) {
        extents.erase(extents.begin() + long(i));
        break;
      }
    placement == Placement::heap ? free(heap_) : page_pool.give_back(pages_);
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  T* data() const { return data_; }
  int64_t size() const { return size_; }
  T& operator[](int64_t i) const { return data_[i]; }
  bool is_unset(int64_t i) const {
    unsigned char bytes[sizeof(T)];
    memcpy(bytes, data_ + i, sizeof(T));
    for (unsigned char byte : bytes)
      if (byte != unset) return false;
    return true;
  }

 private:
  static constexpr unsigned char unset = 0xff;
  static constexpr size_t empty = 16;  // sanitizers give an allocation of no byte one byte
  T* data_;
  int64_t size_;
  char* heap_ = nullptr;
  Pages pages_{};
};

// ---- faults ----

inline void report_case() { fprintf(stderr, "FAULT in %s\n", current_case); }

inline void report_fault(int, siginfo_t* info, void*) {
  report_case();
  const char* address = static_cast<const char*>(info->si_addr);
  for (const Extent& e : extents) {
    const long ahead = long(address - e.data), behind = ahead - long(e.bytes);
    if (behind >= 0 && behind < long(page_bytes))
      fprintf(stderr, "  %ld bytes behind the %zu elements of %s\n", behind, e.bytes / e.element_bytes, e.name);
    if (ahead < 0 && ahead >= -long(page_bytes))
      fprintf(stderr, "  %ld bytes before the %zu elements of %s\n", -ahead, e.bytes / e.element_bytes, e.name);
  }
  _exit(1);
}

// There only where the program is linked with AddressSanitizer.
extern "C" [[gnu::weak]] void __sanitizer_set_death_callback(void (*callback)());
extern "C" const char* __asan_default_options() { return "detect_leaks=0"; }
// The two sanitizers are libraries of their own: of UBSan's death, that callback learns nothing.
extern "C" const char* __ubsan_default_options() { return "print_stacktrace=1:abort_on_error=1"; }

inline void report_faults() {
  if (__sanitizer_set_death_callback) {
    __sanitizer_set_death_callback(report_case);
    signal(SIGABRT, [](int) { report_case(), _exit(1); });
    return;
  }
  struct sigaction action = {};
  action.sa_sigaction = report_fault;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &action, nullptr);
  sigaction(SIGBUS, &action, nullptr);
}
