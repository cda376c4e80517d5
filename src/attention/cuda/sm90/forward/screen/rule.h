// When a head is left unscreened: always in short calls, else by what the last call counted (tda::ScreeningCounters).
//
// Computing a row tile without screening it costs the exact time of the keys it sees; 1 a key in what follows. To
// screen a key costs about 0.3 (measured: docs/decisions/081-screening-choice.md). A row tile that turns out to be
// crowded stops after kVotingKeys keys at most and is then computed entirely, so that screening was a loss of 0.3
// min(keys, kVotingKeys). Another row tile would lose up to 0.7 of its keys without its screen. A head is left
// unscreened where the second sum is less than half of the first: what was counted may not hold for the next call, and
// the screen is what gains most. 0.7 * 2 / 0.3 is about 5.
//
// An unscreened head tells nothing, so after kUnscreenedInARow calls it is screened once: that costs 1/16 of what
// leaving it out saves.
#pragma once

#include "attention/cuda/common/survivor_index.h"
#include "tda/attention_cuda.h"

namespace tda::cuda::sm90 {

constexpr int kVotingKeys = 1024;
constexpr int kUnscreenedInARow = 15;

// Whether a call without documents has so few keys that none of it is screened: what a row block costs beside its keys,
// in the screen and in the sparse product, outweighs all that they can save
// (docs/experiments/2026-11-22-hopper-forward.md).
inline bool is_too_short_to_screen(const AttentionShape& shape) { return shape.key_length <= 12 * shape.head_dim; }

// Whether a screened row tile that sees keys up to `last_key` and in which `candidates` strips of 16 rows x 64 keys of
// all views have a candidate is crowded: three quarters of all there are.
TDA_HOST_DEVICE inline bool is_crowded(int candidates, int last_key, int views) {
  return candidates >= 3 * views * (last_key / 64 + 1);
}

// unscreened_calls of the call that follows `last` and whose rows see `keys` keys on average; 0: the head is screened.
TDA_HOST_DEVICE inline int next_unscreened_calls(const ScreeningCounters& last, int keys) {
  if (last.unscreened_calls > 0) {
    return last.unscreened_calls < kUnscreenedInARow ? last.unscreened_calls + 1 : 0;
  }
  const float crowded = static_cast<float>(last.crowded);
  const float others = static_cast<float>(last.screened) - crowded;
  const float voting_keys = static_cast<float>(keys < kVotingKeys ? keys : kVotingKeys);
  return last.screened > 0 && 5.0f * others * static_cast<float>(keys) <= crowded * voting_keys ? 1 : 0;
}

}  // namespace tda::cuda::sm90
