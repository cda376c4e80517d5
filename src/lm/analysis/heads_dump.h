// The queries, keys and values of one layer on real text, for measuring operators on inputs that a trained model
// produces.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>

#include "lm/model/gpt.h"

namespace tda {

// Writes a safetensors file with `q`, `k` (one view) or `q1`, `k1`, `q2`, `k2`, and `v`: (B, H, T, D), fp32, after RoPE
// and before the L2 norm; and, where the mechanism has them, `beta` and `lambda` (H). `layer` stands in the metadata.
// ids: (B, T), int64. Throws Error when `layer` is not one of the model's.
void dump_heads(Gpt& model, const at::Tensor& ids, std::int64_t layer, const std::filesystem::path& file);

}  // namespace tda
