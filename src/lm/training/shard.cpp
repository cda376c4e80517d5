#include "lm/training/shard.h"

namespace tda {

Shard shard_of(const std::vector<NamedParameter>& parameters, int rank, int size) {
  Shard shard;
  for (const NamedParameter& parameter : parameters) {
    if (parameter.tensor.requires_grad()) shard.total += parameter.tensor.numel();
  }
  shard.count = (shard.total + size - 1) / size;
  shard.first = rank * shard.count;
  return shard;
}

}  // namespace tda
