#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

#include "lm/data/token_stream.h"

namespace tda {

/// Windows of context + 1 tokens of a stream, each the inputs and targets of one training sequence. Window w begins at
/// token w·context, so that every token but the first is a target exactly once an epoch (what does not fill a window at
/// the end is left out).
///
/// With a seed, the order of an epoch is a permutation that is a pure function of (seed, epoch, index): no state, no
/// memory, the same on every compiler and for every number of processes. The position in training is one integer, the
/// global index of the next window; index / windows_per_epoch() is the epoch. Without a seed, windows come in the order
/// of the text, in every epoch.
class WindowSampler {
 public:
  /// `tokens` must outlive the sampler. Throws Error when it does not fill one window.
  WindowSampler(const TokenStream& tokens, int64_t context, std::optional<uint64_t> shuffle_seed);

  int64_t windows_per_epoch() const { return windows_; }
  int64_t context() const { return context_; }

  /// Number of the window, in [0, windows_per_epoch()), that stands at global index `index` >= 0.
  int64_t window_at(int64_t index) const;

  /// Windows at the global indices first_index … first_index + count - 1: int64 (count, context + 1), on the CPU.
  at::Tensor batch(int64_t first_index, int64_t count) const;

 private:
  const TokenStream& tokens_;
  int64_t context_;
  int64_t windows_;
  std::optional<uint64_t> shuffle_seed_;
};

}  // namespace tda
