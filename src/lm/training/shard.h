// A part of the model's weights, for an optimizer that is split over processes (ZeRO stage 1: Rajbhandari et al., arXiv
// 1910.02054).
#pragma once

#include <cstdint>
#include <vector>

#include "lm/model/parameter.h"

namespace tda {

// Elements [first, first + count) of the trainable parameters laid end to end, of which there are `total`.
struct Shard {
  std::int64_t first = 0, count = 0, total = 0;
};

// The shard of process `rank` of `size`. All have one length, so the last ones may reach beyond `total`.
Shard shard_of(const std::vector<NamedParameter>& parameters, int rank, int size);

}  // namespace tda
