// Operators spmm, spmm_t, sddmm and spmm_backward: checks, layout, and the division of work among threads.
//
// Samples are cut into panels, rows into tiles, columns into the plan's blocks. A thread packs one block of the
// gathered operand into its own small buffer (so that it is read from memory once, strided or not) and runs every
// group of that block over it. What a thread adds to one output element, and in which order, is fixed by the plan
// alone: the same bits at any number of threads.
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstdlib>
#include <memory>
#include <new>
#include <optional>
#include <tuple>

#include "check.h"
#include "isa.h"
#include "kernels.h"
#include "plan.h"

namespace sparseprune {
namespace {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

constexpr int32_t tile_rows = 2048;       // rows of a panel computed at a time: 512 KB of float, half of a 1 MB L2
constexpr int64_t serial_work = 1 << 15;  // multiply-adds below which a second thread costs more than it saves

template <class Scalar>
const KernelsOf<Scalar>& kernels();
template <>
const KernelsOf<float>& kernels<float>() {
  return current_isa().kernels();
}
template <>
const KernelsOf<double>& kernels<double>() {
  return double_kernels();
}

// A buffer of the calling thread that keeps its memory between calls: fresh pages cost more than the arithmetic.
enum Slot { gathered_block, row_tile, gradient_tile, slots };
template <class Scalar>
Scalar* workspace(Slot slot, int64_t features) {
  struct Free {
    void operator()(void* p) const { std::free(p); }
  };
  thread_local std::unique_ptr<void, Free> memory[slots];
  thread_local size_t capacity[slots] = {};
  const size_t bytes = size_t(std::max<int64_t>(features, 1)) * panel_width * sizeof(Scalar);
  if (bytes > capacity[slot]) {
    memory[slot].reset(std::aligned_alloc(64, bytes));
    capacity[slot] = memory[slot] ? bytes : 0;
    if (!memory[slot]) throw std::bad_alloc();
  }
  return static_cast<Scalar*>(memory[slot].get());
}

// ---- the division of work ----

struct Range {
  int32_t begin, end;
};

// Rows of part `part` of `parts`, of about equal work: nonzeros, and the packing of a row, about 8 nonzeros' time.
Range rows_of_part(const PlanView& plan, int64_t part, int64_t parts) {
  const auto work_before = [&](int32_t row) { return int64_t(plan.row_start[row]) + 8 * int64_t(row); };
  const int64_t total = work_before(plan.header.rows);
  const auto boundary = [&](int64_t i) {
    int32_t low = 0, high = plan.header.rows;
    while (low < high) {
      const int32_t middle = low + (high - low) / 2;
      work_before(middle)* parts < total* i ? low = middle + 1 : high = middle;
    }
    return low;
  };
  return {part == 0 ? 0 : boundary(part), part + 1 == parts ? plan.header.rows : boundary(part + 1)};
}

int64_t worthwhile_threads(const PlanView& plan, int64_t batch) {
  return int64_t(plan.header.nnz) * batch < serial_work ? 1 : int64_t(torch::stable::get_num_threads());
}

// The segments of `group` whose rows lie in `rows`, and the index of their first nonzero.
std::pair<Group, int64_t> part_of_group(const PlanView& plan, const PlanGroup& group, Range rows) {
  const int32_t* begin = plan.segment_row + group.first_segment;
  const int32_t* end = begin + group.segments;
  const int32_t* first = std::lower_bound(begin, end, rows.begin);
  const int32_t* last = std::lower_bound(first, end, rows.end);
  const int64_t nonzero = group.first_nonzero + (first - begin) * int64_t(group.count);
  return {{first, int32_t(last - first), group.count, plan.offset + nonzero}, nonzero};
}

template <class Scalar>
Strided<Scalar> at(Strided<Scalar> m, int64_t feature, int64_t sample) {
  m.data += feature * m.feature_stride + sample * m.batch_stride;
  return m;
}

// The block of the gathered operand that a thread has in its buffer.
template <class Scalar>
struct GatheredBlock {
  Strided<const Scalar> source;
  const PlanHeader& header;
  Scalar* packed = workspace<Scalar>(gathered_block, std::min(header.block_cols, header.cols));
  int32_t block = -1;
  int64_t panel = -1;

  const Scalar* get(int32_t wanted_block, int64_t wanted_panel, int samples) {
    if (block != wanted_block || panel != wanted_panel) {
      const int64_t first = int64_t(wanted_block) * header.block_cols;
      kernels<Scalar>().pack(at(source, first, wanted_panel * panel_width),
                             std::min<int64_t>(header.block_cols, header.cols - first), samples, packed);
      block = wanted_block;
      panel = wanted_panel;
    }
    return packed;
  }
};

int samples_of(int64_t panel, int64_t batch) {
  return int(std::min<int64_t>(panel_width, batch - panel * panel_width));
}
int64_t panels_of(int64_t batch) { return (batch + panel_width - 1) / panel_width; }

// y = W x + bias. `value` is in the order of the plan.
template <class Scalar>
void run_spmm(const PlanView& plan, const Scalar* value, Strided<const Scalar> x, const Scalar* bias,
              int64_t batch, Strided<Scalar> y) {
  const int64_t panels = panels_of(batch), threads = worthwhile_threads(plan, batch);
  // Whole panels where they can be dealt out evenly; otherwise every panel's rows are divided too.
  const int64_t parts = panels % threads == 0 ? 1 : threads;
  torch::stable::parallel_for(0, panels * parts, 1, [&](int64_t begin, int64_t end) {
    GatheredBlock<Scalar> gathered{x, plan.header};
    Scalar* tile = workspace<Scalar>(row_tile, std::min(tile_rows, plan.header.rows));
    for (int64_t item = begin; item < end; ++item) {
      const int64_t panel = item / parts;
      const int samples = samples_of(panel, batch);
      const Range rows = rows_of_part(plan, item % parts, parts);
      for (int32_t row = rows.begin; row < rows.end; row += tile_rows) {
        const Range in_tile{row, std::min(row + tile_rows, rows.end)};
        for (int32_t r = in_tile.begin; r < in_tile.end; ++r)
          std::fill_n(tile + int64_t(r - row) * panel_width, panel_width, bias ? bias[r] : Scalar(0));
        for (int32_t i = 0; i < plan.header.groups; ++i) {
          const auto [group, nonzero] = part_of_group(plan, plan.groups[i], in_tile);
          if (group.segments == 0) continue;
          const Scalar* block = gathered.get(plan.groups[i].block, panel, samples);
          kernels<Scalar>().spmm(group, value + nonzero, samples, block, tile - int64_t(row) * panel_width);
        }
        kernels<Scalar>().unpack(tile, in_tile.end - in_tile.begin, samples, at(y, row, panel * panel_width));
      }
    }
  });
}

// d_value = (g x^T) at the nonzeros and, unless d_x.data is null, d_x = W^T g. The plan is that of the transpose:
// its rows are the columns of W. Threads divide those rows, so that each nonzero belongs to one thread.
template <class Scalar>
void run_sddmm(const PlanView& plan, const Scalar* value, Strided<const Scalar> g, Strided<const Scalar> x,
               int64_t batch, Strided<Scalar> d_x, Scalar* d_value) {
  const bool with_d_x = d_x.data != nullptr;
  const int64_t panels = panels_of(batch), parts = worthwhile_threads(plan, batch);
  torch::stable::parallel_for(0, parts, 1, [&](int64_t begin, int64_t end) {
    GatheredBlock<Scalar> gathered{g, plan.header};
    const int32_t most_rows = std::min(tile_rows, plan.header.rows);
    Scalar* x_tile = workspace<Scalar>(row_tile, most_rows);
    Scalar* d_x_tile = with_d_x ? workspace<Scalar>(gradient_tile, most_rows) : nullptr;
    for (int64_t part = begin; part < end; ++part) {
      const Range rows = rows_of_part(plan, part, parts);
      for (int64_t panel = 0; panel < panels; ++panel) {
        const int samples = samples_of(panel, batch);
        for (int32_t row = rows.begin; row < rows.end; row += tile_rows) {
          const Range in_tile{row, std::min(row + tile_rows, rows.end)};
          const int64_t features = in_tile.end - in_tile.begin, shift = int64_t(row) * panel_width;
          kernels<Scalar>().pack(at(x, row, panel * panel_width), features, samples, x_tile);
          if (with_d_x) std::fill_n(d_x_tile, features * panel_width, Scalar(0));
          for (int32_t i = 0; i < plan.header.groups; ++i) {
            const auto [group, nonzero] = part_of_group(plan, plan.groups[i], in_tile);
            if (group.segments == 0) continue;
            const Scalar* block = gathered.get(plan.groups[i].block, panel, samples);
            if (with_d_x)
              kernels<Scalar>().spmm_sddmm(group, value + nonzero, samples, block, x_tile - shift,
                                           d_x_tile - shift, d_value + nonzero);
            else
              kernels<Scalar>().sddmm(group, samples, block, x_tile - shift, d_value + nonzero);
          }
          if (with_d_x) kernels<Scalar>().unpack(d_x_tile, features, samples, at(d_x, row, panel * panel_width));
        }
      }
    }
  });
}

// ---- checks and layout ----

void check_type(const char* op, const char* what, const Tensor& t, ScalarType expected) {
  check(t.is_cpu(), op, ": expected ", what,
        " on the CPU like the other tensors, got another device; move all to one device");
  check(t.scalar_type() == expected, op, ": expected ", what, " to be ", name_of(expected), ", got ",
        name_of(t.scalar_type()));
}

ScalarType check_values(const char* op, const char* what, const Tensor& t) {
  const ScalarType type = t.scalar_type();
  check(type == ScalarType::Float || type == ScalarType::Double, op, ": expected ", what,
        " to be float32 (or float64, slow, for checking gradients), got ", name_of(type),
        "; convert with .float()");
  return type;
}

void check_activation(const char* op, const char* what, const Tensor& t, int64_t features, const char* meaning) {
  check(t.dim() == 2 && t.size(0) == features, op, ": expected ", what, ".shape == [", features, " (", meaning,
        "), batch], got ", t.dim() == 2 ? "[" : "", t.dim() == 2 ? std::to_string(t.size(0)) : "",
        t.dim() == 2 ? ", " + std::to_string(t.size(1)) + "]" : std::to_string(t.dim()) + " dimensions");
}

PlanView check_plan(const char* op, const Tensor& crow, const Tensor& col, const Tensor& plan, bool transposed) {
  check_type(op, "crow", crow, ScalarType::Int);
  check_type(op, "col", col, ScalarType::Int);
  check_type(op, "plan", plan, ScalarType::Int);
  const int64_t header_size = sizeof(PlanHeader) / 4;
  check(plan.dim() == 1 && plan.is_contiguous() && plan.numel() >= header_size &&
            plan.const_data_ptr<int32_t>()[0] == PlanHeader::expected_magic &&
            plan.numel() == PlanView::size(*reinterpret_cast<const PlanHeader*>(plan.const_data_ptr<int32_t>())),
        op, ": expected a plan made by sparseprune::plan, got another tensor; build it from crow and col");
  const PlanView view(plan.const_data_ptr<int32_t>());
  const int64_t rows = transposed ? view.header.cols : view.header.rows;
  check(crow.numel() == rows + 1 && col.numel() == view.header.nnz, op, ": expected the plan of this pattern (",
        crow.numel() - 1, " rows, ", col.numel(), " nonzeros), got one of ", rows, " rows and ", view.header.nnz,
        " nonzeros; build it again after changing the pattern");
  return view;
}

void check_nonzeros(const char* op, const Tensor& values, const PlanView& plan) {
  check(values.dim() == 2 && values.size(0) == plan.header.nnz && values.size(1) == 1, op,
        ": expected values.shape == [", plan.header.nnz, " (nonzeros of the pattern), 1], got ", values.dim(),
        " dimensions, ", values.numel(), " numbers");
}

bool is_batch_inner(const Tensor& x) { return x.stride(1) == 1 && x.stride(0) != 1; }

// [features, batch] in which one of the strides is 1; a copy only where neither is.
Tensor with_unit_stride(const Tensor& x) {
  if (x.stride(0) == 1 || x.stride(1) == 1) return x;
  return torch::stable::transpose(torch::stable::contiguous(torch::stable::transpose(x, 0, 1)), 0, 1);
}

Tensor new_activation(const Tensor& like, int64_t features, int64_t batch, bool batch_inner) {
  if (batch_inner) return torch::stable::new_empty(like, {features, batch});
  return torch::stable::transpose(torch::stable::new_empty(like, {batch, features}), 0, 1);
}

template <class Scalar>
Strided<const Scalar> view(const Tensor& x) {
  return {x.const_data_ptr<Scalar>(), x.stride(0), x.stride(1)};
}
template <class Scalar>
Strided<Scalar> mutable_view(const Tensor& x) {
  return {x.mutable_data_ptr<Scalar>(), x.stride(0), x.stride(1)};
}

constexpr int64_t gather_grain = 1 << 14, gather_grain_groups = 16;

// values, in the order of the plan
template <class Scalar>
Tensor in_plan_order(const Tensor& values, const PlanView& plan) {
  const Tensor contiguous = torch::stable::contiguous(values);
  const Tensor ordered = torch::stable::new_empty(values, {plan.header.nnz});
  const Scalar* from = contiguous.const_data_ptr<Scalar>();
  Scalar* to = ordered.mutable_data_ptr<Scalar>();
  if (!plan.header.source_is_runs) {
    torch::stable::parallel_for(0, plan.header.nnz, gather_grain, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) to[i] = from[plan.source[i]];
    });
    return ordered;
  }
  torch::stable::parallel_for(0, plan.header.groups, gather_grain_groups, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const PlanGroup& group = plan.groups[i];
      const int32_t* run = plan.source + group.first_segment;
      Scalar* out = to + group.first_nonzero;
      for (int32_t s = 0; s < group.segments; ++s, out += group.count)
        for (int32_t j = 0; j < group.count; ++j) out[j] = from[run[s] + j];
    }
  });
  return ordered;
}

template <class Scalar>
Tensor from_plan_order(const Tensor& ordered, const PlanView& plan) {
  const Tensor values = torch::stable::new_empty(ordered, {plan.header.nnz, 1});
  const Scalar* from = ordered.const_data_ptr<Scalar>();
  Scalar* to = values.mutable_data_ptr<Scalar>();
  torch::stable::parallel_for(0, plan.header.nnz, gather_grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) to[plan.source[i]] = from[i];
  });
  return values;
}

template <class F>
auto dispatch(ScalarType type, F f) {
  return type == ScalarType::Double ? f(double{}) : f(float{});
}

// ---- operators ----

Tensor multiply(const PlanView& plan, const Tensor& x, const Tensor& values, const std::optional<Tensor>& bias) {
  const Tensor input = with_unit_stride(x);
  const int64_t batch = x.size(1);
  Tensor y = new_activation(x, plan.header.rows, batch, is_batch_inner(x));
  if (y.numel() == 0) return y;
  const std::optional<Tensor> b = bias ? std::optional(torch::stable::contiguous(*bias)) : std::nullopt;
  dispatch(x.scalar_type(), [&](auto zero) {
    using Scalar = decltype(zero);
    const Tensor ordered = in_plan_order<Scalar>(values, plan);
    run_spmm<Scalar>(plan, ordered.const_data_ptr<Scalar>(), view<Scalar>(input),
                     b ? b->const_data_ptr<Scalar>() : nullptr, batch, mutable_view<Scalar>(y));
  });
  return y;
}

Tensor spmm(const Tensor& x, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor& plan_of_w,
            const Tensor&, const std::optional<Tensor>& bias) {
  const PlanView plan = check_plan("spmm", crow, col, plan_of_w, false);
  const ScalarType type = check_values("spmm", "x", x);
  check_type("spmm", "values", values, type);
  check_nonzeros("spmm", values, plan);
  check_activation("spmm", "x", x, plan.header.cols, "weight columns");
  if (bias) {
    check_type("spmm", "bias", *bias, type);
    check(bias->dim() == 1 && bias->size(0) == plan.header.rows, "spmm: expected bias.shape == [",
          plan.header.rows, " (weight rows)], got ", bias->dim(), " dimensions, ", bias->numel(), " numbers");
  }
  return multiply(plan, x, values, bias);
}

Tensor spmm_t(const Tensor& g, const Tensor& values, const Tensor& crow, const Tensor& col, const Tensor&,
              const Tensor& plan_t, int64_t cols) {
  const PlanView plan = check_plan("spmm_t", crow, col, plan_t, true);
  check_type("spmm_t", "values", values, check_values("spmm_t", "g", g));
  check_nonzeros("spmm_t", values, plan);
  check_activation("spmm_t", "g", g, plan.header.cols, "weight rows");
  check(cols == plan.header.rows, "spmm_t: expected cols == ", plan.header.rows, " (the plan's), got ", cols);
  return multiply(plan, g, values, std::nullopt);
}

// Both gradients, or that of the values alone when `values` is absent.
std::tuple<Tensor, Tensor> gradients(const char* op, const Tensor& g, const Tensor& x,
                                     const std::optional<Tensor>& values, const Tensor& crow, const Tensor& col,
                                     const Tensor& plan_t) {
  const PlanView plan = check_plan(op, crow, col, plan_t, true);
  const ScalarType type = check_values(op, "g", g);
  check_type(op, "x", x, type);
  check_activation(op, "g", g, plan.header.cols, "weight rows");
  check_activation(op, "x", x, plan.header.rows, "weight columns");
  const int64_t batch = x.size(1);
  check(g.size(1) == batch, op, ": expected x and g of one batch size, got ", batch, " and ", g.size(1));
  if (values) {
    check_type(op, "values", *values, type);
    check_nonzeros(op, *values, plan);
  }
  const Tensor g_in = with_unit_stride(g), x_in = with_unit_stride(x);
  Tensor d_x = new_activation(x, values ? plan.header.rows : 0, batch, is_batch_inner(x));
  const Tensor d_ordered = torch::stable::new_zeros(x, {plan.header.nnz});
  return dispatch(type, [&](auto zero) -> std::tuple<Tensor, Tensor> {
    using Scalar = decltype(zero);
    if (batch > 0) {
      const Tensor ordered = values ? in_plan_order<Scalar>(*values, plan) : d_ordered;
      run_sddmm<Scalar>(plan, values ? ordered.const_data_ptr<Scalar>() : nullptr, view<Scalar>(g_in),
                        view<Scalar>(x_in), batch, mutable_view<Scalar>(d_x),
                        d_ordered.mutable_data_ptr<Scalar>());
    }
    return {d_x, from_plan_order<Scalar>(d_ordered, plan)};
  });
}

Tensor sddmm(const Tensor& g, const Tensor& x, const Tensor& crow, const Tensor& col, const Tensor&,
             const Tensor& plan_t) {
  return std::get<1>(gradients("sddmm", g, x, std::nullopt, crow, col, plan_t));
}

std::tuple<Tensor, Tensor> spmm_backward(const Tensor& g, const Tensor& x, const Tensor& values,
                                         const Tensor& crow, const Tensor& col, const Tensor&,
                                         const Tensor& plan_t) {
  return gradients("spmm_backward", g, x, values, crow, col, plan_t);
}

}  // namespace
}  // namespace sparseprune

STABLE_TORCH_LIBRARY_IMPL(sparseprune, CPU, m) {
  m.impl("spmm", TORCH_BOX(&sparseprune::spmm));
  m.impl("spmm_t", TORCH_BOX(&sparseprune::spmm_t));
  m.impl("sddmm", TORCH_BOX(&sparseprune::sddmm));
  m.impl("spmm_backward", TORCH_BOX(&sparseprune::spmm_backward));
}
