// Instruction sets: what this processor has, and which one is in use.
#pragma once
#include <string>
#include <type_traits>
#include <vector>

#include "cpu/kernels/kernels.h"

namespace sparseprune {

struct Isa {
  const char* name;
  bool (*supported)();
  const Kernels& (*kernels)();
};

// Best first. The choice is made at the first call: SPARSEPRUNE_ISA if set, else the first supported one.
std::vector<std::string> available_isas();
const Isa& current_isa();
void set_isa(const std::string& name);  // throws std::invalid_argument with the list of what is available

// The kernels in use for numbers of a type.
template <class Element>
const KernelsOf<Element>& kernels() {
  if constexpr (std::is_same_v<Element, double>)
    return double_kernels();
  else if constexpr (std::is_same_v<Element, BFloat16>)
    return current_isa().kernels().of_bfloat16;
  else
    return current_isa().kernels().of_float;
}

}  // namespace sparseprune
