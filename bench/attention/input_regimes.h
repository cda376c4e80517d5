// Inputs of the benchmark. A speed of sparse attention means nothing without the regime of its inputs.
//
// random:    iid normal q, k, v; beta 1.
// trained:   q, k, v of one layer of a trained TDA model (raw bfloat16 files); beta 1.0352, lambda 0.3789.
// planted-8: T/8 iid unit directions per head; a random permutation gives each direction 8 keys,
//            key = unit(direction + 0.2 unit noise); each query takes a random direction in the same way. Nearly every
//            64 x 128 tile holds a survivor, and hardly any pair survives.
// dense:     as random with beta 0: half of all causal pairs survive.
#pragma once

#include <ATen/core/Tensor.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace tda::bench {

struct RegimeInputs {
  at::Tensor q[2], k[2], v;  // (1, heads, T, D)
  double beta = 1.0;
  double lambda = 0.5;
};

struct InputShape {
  std::int64_t heads = 12;
  std::int64_t length = 1024;
  std::int64_t dim = 64;
};

const std::vector<std::string>& regime_names();

// The inputs of `regime` in `type`, the same for every call. Nothing if the regime needs files that are not below
// `data` (trained), or a shape that the files do not have.
std::optional<RegimeInputs> make_inputs(const std::string& regime, const InputShape& shape, at::ScalarType type,
                                        const std::filesystem::path& data);

}  // namespace tda::bench
