#include "lm/training/parameter_shards.h"

#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>

namespace tda {

ParameterShards::ParameterShards(const std::vector<NamedParameter>& parameters, ProcessGroup& group)
    : group_(group), own_(shard_of(parameters, group.rank(), group.size())) {
  const c10::NoGradGuard no_gradient;
  values_ = at::zeros({own_.count * group.size()}, parameters.front().tensor.detach().options());
  std::int64_t first = 0;
  for (const NamedParameter& parameter : parameters) {
    if (!parameter.tensor.requires_grad()) continue;
    const at::Tensor place = values_.narrow(0, first, parameter.tensor.numel()).view(parameter.tensor.sizes());
    place.copy_(parameter.tensor.detach());
    parameter.tensor.set_data(place);
    first += parameter.tensor.numel();
  }
}

void ParameterShards::gather() {
  const c10::NoGradGuard no_gradient;
  // A copy, since backends differ in whether a part may lie inside the whole.
  const at::Tensor part = values_.narrow(0, own_.first, own_.count).clone();
  values_.copy_(group_.all_gather(part));
}

}  // namespace tda
