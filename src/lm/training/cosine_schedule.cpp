#include "lm/training/cosine_schedule.h"

#include <cmath>
#include <numbers>

namespace tda {

double CosineSchedule::at(std::int64_t t) const {
  if (t < warmup) return peak * static_cast<double>(t + 1) / static_cast<double>(warmup);
  if (t >= steps) return minimum;
  const double progress = static_cast<double>(t - warmup) / static_cast<double>(steps - warmup);
  return minimum + (peak - minimum) * 0.5 * (1.0 + std::cos(std::numbers::pi * progress));
}

}  // namespace tda
