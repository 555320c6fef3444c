#include "cpu/kernels/isa.h"

#include <atomic>
#include <cstdlib>
#include <stdexcept>

namespace sparseprune {
namespace {

// gcc wants literal names in __builtin_cpu_supports, hence one function an instruction set.
#if defined(__x86_64__)
bool has_avx2() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
}
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") && has_avx2();
}
#endif

constexpr Isa isas[] = {
#if defined(__x86_64__)
    {"avx512", has_avx512, avx512_kernels},
    {"avx2", has_avx2, avx2_kernels},
#elif defined(__aarch64__)
    {"neon", [] { return true; }, neon_kernels},
#endif
    {"scalar", [] { return true; }, scalar_kernels},
};

std::string list_available() {
  std::string names;
  for (const std::string& name : available_isas()) names += (names.empty() ? "" : ", ") + name;
  return names;
}

const Isa& find(const std::string& name, const std::string& asked_by) {
  for (const Isa& isa : isas)
    if (name == isa.name && isa.supported()) return isa;
  throw std::invalid_argument(asked_by + ": expected one of " + list_available() +
                              " (what this processor and this build support), got \"" + name + "\"");
}

std::atomic<const Isa*> chosen{nullptr};

}  // namespace

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : isas)
    if (isa.supported()) names.emplace_back(isa.name);
  return names;
}

const Isa& current_isa() {
  const Isa* isa = chosen.load(std::memory_order_acquire);
  if (isa == nullptr) {
    const char* forced = std::getenv("SPARSEPRUNE_ISA");
    isa = (forced && *forced) ? &find(forced, "SPARSEPRUNE_ISA") : &find(available_isas().front(), "isa");
    chosen.store(isa, std::memory_order_release);
  }
  return *isa;
}

void set_isa(const std::string& name) { chosen.store(&find(name, "set_isa"), std::memory_order_release); }

}  // namespace sparseprune
