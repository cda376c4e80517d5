#include "lm/model/key_value_cache.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>

namespace tda {
namespace {

constexpr std::int64_t kSmallestReserve = 64;

// Copies `rows` (B, H, n, D) behind the first `held` rows of `store`, which is replaced by one of twice the size when
// it is full, and returns the first held + n rows.
at::Tensor append_rows(at::Tensor& store, const at::Tensor& rows, std::int64_t held) {
  const std::int64_t wanted = held + rows.size(2);
  if (!store.defined() || store.size(2) < wanted) {
    std::int64_t reserve = store.defined() ? store.size(2) : kSmallestReserve;
    while (reserve < wanted) reserve *= 2;
    const auto larger = at::empty({rows.size(0), rows.size(1), reserve, rows.size(3)}, rows.options());
    if (held > 0) larger.narrow(2, 0, held).copy_(store.narrow(2, 0, held));
    store = larger;
  }
  store.narrow(2, held, rows.size(2)).copy_(rows);
  return store.narrow(2, 0, wanted);
}

}  // namespace

KeyValueCache::View KeyValueCache::append(std::int64_t layer, const std::array<at::Tensor, 2>& k, const at::Tensor& v) {
  at::NoGradGuard no_gradient;
  auto& stored = layers_.at(static_cast<std::size_t>(layer));
  View view;
  for (std::size_t i = 0; i < k.size(); ++i) {
    if (k[i].defined()) view.k[i] = append_rows(stored.k[i], k[i], length_);
  }
  view.v = append_rows(stored.v, v, length_);
  return view;
}

void KeyValueCache::truncate(std::int64_t length) { length_ = std::clamp<std::int64_t>(length, 0, length_); }

}  // namespace tda
