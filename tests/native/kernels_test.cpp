// Every kernel of every instruction set of this processor, over sizes that leave every remainder, against plain
// loops. Operands lie in buffers of exactly the size that kernels.h asks for (see buffers.h).
//
//   kernels_test heap before_guard after_guard    where buffers are put; all of them where none is named
//
// All numbers are small integers, which sums hold exactly in any order: results are equal, not close.
#include <cstdio>
#include <string>
#include <vector>

#include "batch_norm_tests.h"
#include "conv_tests.h"
#include "cpu/kernels/isa.h"
#include "linear_tests.h"
#include "pack_tests.h"

namespace sparseprune {
namespace {

template <class Element>
void test(const std::string& isa, const KernelsOf<Element>& kernels, int lanes) {
  PackTests<Element>(isa, kernels, lanes).run();
  LinearTests<Element>(isa, kernels, lanes).run();
  ConvTests<Element>(isa, kernels).run();
  BatchNormTests<Element>(isa, kernels).run();
}

int run(const std::vector<std::string>& placements) {
  std::string isas;
  for (const std::string& isa : available_isas()) isas += (isas.empty() ? "" : ", ") + isa;
  std::string where;
  for (const std::string& name : placements) {
    where += (where.empty() ? "" : ", ") + name;
    if (name == "heap") {
      placement = Placement::heap;
    } else if (name == "before_guard") {
      placement = Placement::before_guard;
    } else if (name == "after_guard") {
      placement = Placement::after_guard;
    } else {
      fprintf(stderr, "kernels_test: expected heap, before_guard or after_guard, got %s\n", name.c_str());
      return 2;
    }
    for (const std::string& isa : available_isas()) {
      set_isa(isa);
      const Kernels& kernels = current_isa().kernels();
      const int lanes = isa == "avx512" ? 16 : isa == "avx2" ? 8 : isa == "neon" ? 4 : 1;
      test(isa, kernels.of_float, lanes);
      test(isa, kernels.of_bfloat16, lanes);
    }
    test("scalar", double_kernels(), 1);
  }
  printf("kernels_test: %s; buffers %s: %ld cases, %ld failures\n", isas.c_str(), where.c_str(), cases, failures);
  return failures ? 1 : 0;
}

}  // namespace
}  // namespace sparseprune

int main(int count, char** arguments) {
  report_faults();
  std::vector<std::string> placements(arguments + 1, arguments + count);
  if (placements.empty()) placements = {"heap", "before_guard", "after_guard"};
  return sparseprune::run(placements);
}
