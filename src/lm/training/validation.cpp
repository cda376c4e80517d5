#include "lm/training/validation.h"

#include <c10/core/GradMode.h>

#include <algorithm>

namespace tda {

ValidationResult validate(Gpt& model, const WindowSampler& sampler, std::int64_t windows, std::int64_t micro_batch,
                          ProcessGroup& group) {
  const c10::NoGradGuard no_gradient;
  ValidationResult result;
  double sum = 0.0;
  for (std::int64_t first = group.rank() * micro_batch; first < windows; first += group.size() * micro_batch) {
    const std::int64_t count = std::min(micro_batch, windows - first);
    const at::Tensor batch = sampler.batch(first, count).to(model.device());
    const std::int64_t context = batch.size(1) - 1;
    const at::Tensor loss =
        model.loss(batch.narrow(1, 0, context), batch.narrow(1, 1, context), first == 0 ? &result.statistics : nullptr);
    sum += loss.item<double>() * static_cast<double>(count);
    group.advance();
  }
  result.loss = 0.0;
  for (const std::vector<double>& part : group.exchange({sum})) result.loss += part.front();
  result.loss /= static_cast<double>(windows);
  return result;
}

}  // namespace tda
