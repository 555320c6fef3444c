// Instruction sets: what this processor has, and which one is in use.
#pragma once
#include <string>
#include <vector>

namespace sparseprune {

struct Kernels;

struct Isa {
  const char* name;
  bool (*supported)();
  const Kernels& (*kernels)();
};

// Best first. The choice is made at the first call: SPARSEPRUNE_ISA if set, else the first supported one.
std::vector<std::string> available_isas();
const Isa& current_isa();
void set_isa(const std::string& name);  // throws std::invalid_argument with the list of what is available

}  // namespace sparseprune
