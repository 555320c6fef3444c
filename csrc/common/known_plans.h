// Whether a plan is that of its pattern: compared number by number when it is first seen, and again when anything
// was written to either. Kernels trust what a plan says, so no other one may reach them.
#pragma once
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cstdint>
#include <optional>

#include "common/checks.h"

namespace sparseprune {

// A plan and its pattern as an operator gets them: where they lie, and how often they were written to.
class PlanInUse {
 public:
  PlanInUse(const Tensor& crow, const Tensor& col, const Tensor& plan);

  bool known() const;
  // The memory of what is known stays: nothing else can come to lie there and be taken for it.
  void remember(const Tensor& crow, const Tensor& col, const Tensor& plan) const;

  static constexpr int tensors = 3, numbers = 4;  // of each: address, version, size, stride
  using Key = std::array<int64_t, tensors * numbers>;

 private:
  std::optional<Key> key_;  // none: it cannot be known whether they were written to
};

// To be called when nobody has a plan any more.
void forget_plan(int64_t address);

// Whether two tensors on the CPU hold the same int32 numbers.
bool same_numbers(const Tensor& a, const Tensor& b);

// Throws unless `plan` is what make() gives. `on_cpu` brings a plan to where numbers can be read.
template <class Make, class OnCpu>
void check_plan(const char* op, const char* maker, const Tensor& crow, const Tensor& col, const Tensor& plan,
                Make make, OnCpu on_cpu) {
  const PlanInUse use(crow, col, plan);
  if (use.known()) return;
  check(same_numbers(on_cpu(plan), make()), op, ": expected the plan that sparseprune::", maker,
        " makes of this pattern, got other numbers; build it again after changing crow or col (a layer does so "
        "when it is called outside of compiled graphs)");
  use.remember(crow, col, plan);
}

}  // namespace sparseprune
