#include "lm/model/rotary_embedding.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace tda {

RotaryEmbedding::RotaryEmbedding(std::int64_t head_dim, double theta, double scaling)
    : head_dim_(head_dim),
      base_(scaling == 1.0
                ? theta
                : theta * std::pow(scaling, static_cast<double>(head_dim) / static_cast<double>(head_dim - 2))) {}

void RotaryEmbedding::extend(std::int64_t positions, at::Device device) {
  if (cosine_.defined() && cosine_.size(0) >= positions && cosine_.device() == device) return;
  std::int64_t rows = 256;
  while (rows < positions) rows *= 2;
  // Angles in double: an fp32 position * frequency is off by 1e-3 rad at position 2^14.
  const auto dimension = at::arange(head_dim_ / 2, at::kDouble);
  const auto frequency = at::pow(base_, dimension * (-2.0 / static_cast<double>(head_dim_)));
  const auto angle = at::outer(at::arange(rows, at::kDouble), frequency);
  cosine_ = angle.cos().to(device, at::kFloat);
  sine_ = angle.sin().to(device, at::kFloat);
}

namespace {

// (B, T, H, D) -> the same, each pair (c, c + D/2) turned.
at::Tensor turn(const at::Tensor& x, const at::Tensor& cosine, const at::Tensor& sine) {
  const auto halves = x.chunk(2, -1);
  return at::cat({halves[0] * cosine - halves[1] * sine, halves[1] * cosine + halves[0] * sine}, -1).to(x.dtype());
}

}  // namespace

ProjectedHeads RotaryEmbedding::split(const at::Tensor& joined, const HeadLayout& layout, std::int64_t first_position) {
  const std::int64_t batch = joined.size(0), length = joined.size(1);
  extend(first_position + length, joined.device());
  const auto cosine = cosine_.narrow(0, first_position, length).unsqueeze(1);
  const auto sine = sine_.narrow(0, first_position, length).unsqueeze(1);
  const std::int64_t turned = 2 * layout.views * layout.heads * layout.head_dim;
  const auto pieces = joined.split_with_sizes({turned, layout.heads * layout.value_dim}, -1);
  const auto query_key = turn(pieces[0].reshape({batch, length, -1, layout.head_dim}), cosine, sine)
                             .transpose(1, 2)
                             .split(layout.heads, 1);
  ProjectedHeads heads;
  for (int view = 0; view < layout.views; ++view) {
    heads.q[view] = query_key[2 * view];
    heads.k[view] = query_key[2 * view + 1];
  }
  heads.v = pieces[1].reshape({batch, length, layout.heads, layout.value_dim}).transpose(1, 2);
  return heads;
}

}  // namespace tda
