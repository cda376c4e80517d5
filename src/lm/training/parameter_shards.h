// Weights of which each process updates one shard: how all get the whole again. Only the optimizer's moments are split;
// weights and gradients stay whole in every process.
#pragma once

#include <ATen/core/Tensor.h>

#include <vector>

#include "lm/model/parameter.h"
#include "lm/training/process_group.h"
#include "lm/training/shard.h"

namespace tda {

class ParameterShards {
 public:
  // Moves the trainable parameters, all on one device, into one flat buffer, values and all. Whoever gives a parameter
  // another storage afterwards takes it out of gather().
  ParameterShards(const std::vector<NamedParameter>& parameters, ProcessGroup& group);

  const Shard& own() const { return own_; }

  // After every process has updated its own shard: gives all of them the whole.
  void gather();

 private:
  ProcessGroup& group_;
  Shard own_;
  at::Tensor values_;  // (size · count)
};

}  // namespace tda
