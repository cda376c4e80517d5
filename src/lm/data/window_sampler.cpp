#include "lm/data/window_sampler.h"

#include <ATen/ops/empty.h>
#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "lm/data/random_permutation.h"
#include "lm/error.h"

namespace tda {

WindowSampler::WindowSampler(const TokenStream& tokens, int64_t context, std::optional<uint64_t> shuffle_seed)
    : tokens_(tokens), context_(context), windows_(0), shuffle_seed_(shuffle_seed) {
  if (context < 1) throw Error(fmt::format("context is {}, expected at least 1", context));
  windows_ = std::max<int64_t>(tokens.size() - 1, 0) / context;
  if (windows_ == 0) {
    throw Error(fmt::format("{} tokens do not fill one window of context + 1 = {}", tokens.size(), context + 1),
                "prepare more text, or make model.context smaller");
  }
}

int64_t WindowSampler::window_at(int64_t index) const {
  if (index < 0) throw std::out_of_range(fmt::format("window index {} is negative", index));
  const int64_t position = index % windows_;
  if (!shuffle_seed_) return position;
  const RandomPermutation order(static_cast<uint64_t>(windows_), *shuffle_seed_,
                                static_cast<uint64_t>(index / windows_));
  return static_cast<int64_t>(order(static_cast<uint64_t>(position)));
}

at::Tensor WindowSampler::batch(int64_t first_index, int64_t count) const {
  at::Tensor windows = at::empty({count, context_ + 1}, at::kLong);
  int64_t* out = windows.data_ptr<int64_t>();
  for (int64_t i = 0; i < count; ++i, out += context_ + 1) {
    tokens_.copy(window_at(first_index + i) * context_, context_ + 1, out);
  }
  return windows;
}

}  // namespace tda
