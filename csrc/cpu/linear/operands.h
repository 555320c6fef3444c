// The operands of linear layers on the CPU: the plan checked, activations with the strides that kernels want.
#pragma once
#include "common/known_plans.h"
#include "common/linear_call.h"
#include "cpu/linear/plan.h"

namespace sparseprune {

// The plan of a pattern, or of its transpose.
inline PlanView checked_plan(const Checks<OnCpu>& checks, const Tensor& crow, const Tensor& col,
                             const Tensor& plan, bool transposed) {
  checks.is_indices("crow", crow);
  checks.is_indices("col", col);
  checks.is_indices("plan", plan);
  const char* op = checks.op;
  const int64_t header_size = sizeof(PlanHeader) / 4;
  check(plan.dim() == 1 && plan.is_contiguous() && plan.numel() >= header_size &&
            plan.const_data_ptr<int32_t>()[0] == PlanHeader::expected_magic &&
            plan.numel() == PlanView::size(*reinterpret_cast<const PlanHeader*>(plan.const_data_ptr<int32_t>())) &&
            bool(plan.const_data_ptr<int32_t>()[1]) == transposed,
        op, ": expected a plan made by sparseprune::plan", transposed ? " of the transpose" : "",
        ", got another tensor; build it from crow and col");
  const PlanView view(plan.const_data_ptr<int32_t>());
  const PlanHeader& h = view.header;
  const int32_t rows = transposed ? h.cols : h.rows, cols = transposed ? h.rows : h.cols;
  check(crow.numel() == int64_t(rows) + 1 && col.numel() == h.nnz, op, ": expected the plan of this pattern (",
        crow.numel() - 1, " rows of blocks, ", col.numel(), " nonzeros), got one of ", rows, " and ", h.nnz,
        "; build it again after changing the pattern");
  const auto make = [&] {
    check_block_rows(op, h.block_rows);
    const bool possible = cols >= 0 && h == header_of(rows, cols, h.nnz, h.block_rows, transposed);
    return possible ? make_plan(crow, col, cols, h.block_rows, transposed) : torch::stable::new_empty(plan, {0});
  };
  check_plan(op, "plan", crow, col, plan, make, [](const Tensor& t) { return t; });
  return view;
}

// Of the weight: a transposed plan has its columns as rows.
inline WeightSize weight_size(const PlanHeader& plan) {
  const int64_t block_rows = plan.block_rows;
  return plan.transposed ? WeightSize{plan.cols * block_rows, plan.rows, plan.nnz, block_rows}
                         : WeightSize{plan.rows * block_rows, plan.cols, plan.nnz, block_rows};
}

// x with a stride of 1; a copy only where it has none.
inline Activation with_unit_stride(const Activation& x) {
  return x.feature_stride == 1 || x.batch_stride == 1 ? x : Activation(feature_inner(x.tensor));
}

// x with the stride of 1 where `like` has it; a copy only where it is elsewhere.
inline Activation in_layout_of(const Activation& like, const Activation& x) {
  if (like.batch_stride == 1) return x.batch_stride == 1 ? x : Activation(torch::stable::contiguous(x.tensor));
  return x.feature_stride == 1 ? x : Activation(feature_inner(x.tensor));
}

}  // namespace sparseprune
