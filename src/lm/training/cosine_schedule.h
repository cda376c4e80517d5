// The learning rate: linear warm-up, then a cosine down to the minimum.
#pragma once

#include <cstdint>

namespace tda {

struct CosineSchedule {
  double peak = 0.0;
  double minimum = 0.0;
  std::int64_t warmup = 0;
  std::int64_t steps = 0;

  // Of the update at 0-based step t: peak (t + 1) / warmup for t < warmup, then
  // minimum + (peak - minimum) (1 + cos(pi (t - warmup) / (steps - warmup))) / 2, which is peak at t = warmup.
  double at(std::int64_t t) const;
};

}  // namespace tda
