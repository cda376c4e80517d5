#include "lm/training/validation.h"

#include <c10/core/GradMode.h>

#include <algorithm>

namespace tda {

ValidationResult validate(Gpt& model, const WindowSampler& sampler, std::int64_t windows, std::int64_t micro_batch) {
  const c10::NoGradGuard no_gradient;
  ValidationResult result;
  double sum = 0.0;
  for (std::int64_t first = 0; first < windows; first += micro_batch) {
    const std::int64_t count = std::min(micro_batch, windows - first);
    const at::Tensor batch = sampler.batch(first, count).to(model.device());
    const std::int64_t context = batch.size(1) - 1;
    const at::Tensor loss =
        model.loss(batch.narrow(1, 0, context), batch.narrow(1, 1, context), first == 0 ? &result.statistics : nullptr);
    sum += loss.item<double>() * static_cast<double>(count);
  }
  result.loss = sum / static_cast<double>(windows);
  return result;
}

}  // namespace tda
