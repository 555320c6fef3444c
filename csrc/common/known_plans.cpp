#include "common/known_plans.h"

#include <torch/csrc/stable/ops.h>

#include <algorithm>
#include <atomic>
#include <functional>
#include <mutex>
#include <unordered_map>
#include <vector>

namespace sparseprune {
namespace {

using Key = PlanInUse::Key;

// A plan that nobody asked for in about so many calls is dropped when another comes.
constexpr int64_t calls_until_forgotten = 1 << 17;

struct Hash {
  size_t operator()(const Key& key) const {
    size_t hash = 0;
    for (const int64_t number : key) hash = (hash ^ size_t(number)) * 0x9E3779B97F4A7C15u;
    return hash ^ hash >> 32;
  }
};

struct Known {
  std::array<Tensor, PlanInUse::tensors> memory;
  int64_t last_call;
};

struct Table {
  std::mutex mutex;
  std::unordered_map<Key, Known, Hash> plans;
  int64_t calls = 0;
  std::atomic<int64_t> losses{0};  // how often plans were dropped
};

// What a thread found last, which it finds again without a lock: the layers of a network come in turns.
struct Found {
  Key key;
  int64_t losses = -1;
  int64_t uses = 0;
};
constexpr size_t found_last = 256;
constexpr int64_t uses_without_lock = 64;  // then the table is told that the plan is in use
thread_local std::array<Found, found_last> found_here;

Table& table() {
  static Table* const only = new Table;  // never destroyed: torch may be gone before
  return *only;
}

// How often a tensor was written to. None for those of inference mode, of which torch does not know it.
std::optional<int64_t> version_of(const Tensor& t) {
  std::array<StableIValue, 1> stack{torch::stable::detail::from(t)};
  if (torch_call_dispatcher("aten::_version", "", stack.data(), TORCH_ABI_VERSION)) return std::nullopt;
  return torch::stable::detail::to<int64_t>(stack[0]);
}

// The memory of a tensor. Not a view of it, which would keep the tensor itself, and what Python has of it.
Tensor memory_of(const Tensor& t) {
  const int64_t size = t.numel(), stride = t.stride(0);
  AtenTensorHandle result;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(t.get(), 1, &size, &stride, 0, &result));
  return Tensor(result);
}

constexpr int plan_at = (PlanInUse::tensors - 1) * PlanInUse::numbers;

// Drops plans under the lock, and their memory after it: memory may be Python's, and need to wait for others.
template <class Predicate>
void erase_plans(Predicate predicate) {
  std::vector<Known> dropped;
  const std::lock_guard lock(table().mutex);
  auto& plans = table().plans;
  for (auto entry = plans.begin(); entry != plans.end();)
    if (predicate(*entry)) {
      dropped.push_back(std::move(entry->second));
      entry = plans.erase(entry);
    } else {
      ++entry;
    }
  if (!dropped.empty()) table().losses.fetch_add(1, std::memory_order_release);
}

}  // namespace

PlanInUse::PlanInUse(const Tensor& crow, const Tensor& col, const Tensor& plan) : key_(Key{}) {
  auto number = key_->begin();
  for (const Tensor* t : {&crow, &col, &plan}) {
    const std::optional<int64_t> version = version_of(*t);
    if (!version || t->dim() != 1) {
      key_.reset();
      return;
    }
    *number++ = int64_t(reinterpret_cast<intptr_t>(t->const_data_ptr()));
    *number++ = *version;
    *number++ = t->numel();
    *number++ = t->stride(0);
  }
}

bool PlanInUse::known() const {
  if (!key_) return false;
  const int64_t losses = table().losses.load(std::memory_order_acquire);
  Found& here = found_here[size_t((*key_)[plan_at]) / 64 % found_last];
  if (here.losses == losses && here.key == *key_ && ++here.uses < uses_without_lock) return true;
  const std::lock_guard lock(table().mutex);
  table().calls += uses_without_lock;
  const auto found = table().plans.find(*key_);
  if (found == table().plans.end()) return false;
  found->second.last_call = table().calls;
  here = {*key_, table().losses.load(std::memory_order_relaxed), 0};
  return true;
}

void PlanInUse::remember(const Tensor& crow, const Tensor& col, const Tensor& plan) const {
  if (!key_) return;
  Known known{{memory_of(crow), memory_of(col), memory_of(plan)}, 0};
  erase_plans([](const auto& entry) { return entry.second.last_call + calls_until_forgotten < table().calls; });
  const std::lock_guard lock(table().mutex);
  known.last_call = table().calls;
  table().plans.try_emplace(*key_, std::move(known));
}

void forget_plan(int64_t address) {
  erase_plans([&](const auto& entry) { return entry.first[plan_at] == address; });
}

bool same_numbers(const Tensor& a, const Tensor& b) {
  return a.numel() == b.numel() && std::equal(a.const_data_ptr<int32_t>(), a.const_data_ptr<int32_t>() + a.numel(),
                                              b.const_data_ptr<int32_t>());
}

}  // namespace sparseprune
