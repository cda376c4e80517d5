// The start of lambda in the Differential Transformer, which grows with depth.
#pragma once

#include <cmath>
#include <cstdint>

namespace tda {

// 0.8 - 0.6 exp(-0.3 layer), layer from 0: 0.2, 0.3555, 0.4707, ...
inline double initial_lambda(std::int64_t layer) { return 0.8 - 0.6 * std::exp(-0.3 * static_cast<double>(layer)); }

}  // namespace tda
