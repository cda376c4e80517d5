// Rotary position embedding in the GPT-NeoX layout: dimension c of a head is paired with c + D/2 and the pair turns by
// position * base^(-2c/D). With NTK-aware scaling s the base is theta * s^(D/(D-2)); positions are not divided.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>

#include "lm/model/attention_mechanism.h"

namespace tda {

class RotaryEmbedding {
 public:
  RotaryEmbedding(std::int64_t head_dim, double theta, double scaling);

  // Cuts the joined projections of a layer into heads of `type` and turns queries and keys.
  // joined: (B, T, C) with C = views*2*H*D + H*D_v, in the order query1 key1 [query2 key2] value; row t stands at
  // absolute position first_position + t. Returned tensors share one buffer (B, T, C). `hidden` is left undefined.
  ProjectedHeads split(const at::Tensor& joined, const HeadLayout& layout, std::int64_t first_position,
                       at::ScalarType type);

 private:
  void extend(std::int64_t positions, at::Device device);

  std::int64_t head_dim_;
  double base_;
  at::Tensor cosine_, sine_;  // fp32 (positions, D/2), grown on demand
};

}  // namespace tda
