// The loss on held-out text, and how sparse attention is there.
#pragma once

#include <cstdint>

#include "lm/data/window_sampler.h"
#include "lm/model/gpt.h"
#include "lm/training/process_group.h"

namespace tda {

struct ValidationResult {
  double loss = 0.0;               // nats per token, mean over all windows
  AttentionStatistics statistics;  // of the first micro batch: maps are dense, and shares settle quickly
};

// The first `windows` windows in the order of the text, always the same; `micro_batch` of them in one forward pass. The
// processes of `group` take the passes in turn and all get the loss; the statistics are those of rank 0.
ValidationResult validate(Gpt& model, const WindowSampler& sampler, std::int64_t windows, std::int64_t micro_batch,
                          ProcessGroup& group);

}  // namespace tda
