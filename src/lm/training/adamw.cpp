#include "lm/training/adamw.h"

#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "lm/error.h"
#include "lm/model/safetensors.h"

namespace tda {

at::Tensor AdamW::gradient(const Piece& piece) {
  const at::Tensor& parameter = piece.parameter;
  if (!parameter.grad().defined()) parameter.mutable_grad() = at::zeros_like(parameter.detach());
  return parameter.grad();
}

at::Tensor AdamW::Piece::of(const at::Tensor& tensor) const {
  return is_whole() ? tensor : tensor.view(-1).narrow(0, first, count);
}

AdamW::Piece AdamW::make_piece(const NamedParameter& parameter, std::int64_t place) const {
  const std::int64_t size = parameter.tensor.numel();
  Piece piece;
  piece.name = parameter.name;
  piece.parameter = parameter.tensor;
  piece.place = place;
  piece.count = size;
  if (shard_) {
    piece.first = std::clamp<std::int64_t>(shard_->first - place, 0, size);
    piece.count = std::clamp<std::int64_t>(shard_->first + shard_->count - place, 0, size) - piece.first;
  }
  piece.values = piece.of(parameter.tensor.detach());
  piece.first_moment = at::zeros_like(piece.values);
  piece.second_moment = at::zeros_like(piece.values);
  piece.step = at::full({}, 0.0, piece.values.options());
  return piece;
}

AdamW::AdamW(const std::vector<NamedParameter>& parameters, const AdamWOptions& options,
             const std::optional<Shard>& shard)
    : options_(options), shard_(shard), groups_(2) {
  groups_[0].weight_decay = options.weight_decay;
  std::int64_t place = 0;
  for (const NamedParameter& parameter : parameters) {
    if (!parameter.tensor.requires_grad()) continue;
    groups_[parameter.decay ? 0 : 1].pieces.push_back(make_piece(parameter, place));
    place += parameter.tensor.numel();
  }
}

double AdamW::clip_gradients(double limit) {
  const c10::NoGradGuard no_gradient;
  std::vector<at::Tensor> all;
  for (const Group& group : groups_) {
    for (const Piece& piece : group.pieces) all.push_back(gradient(piece));
  }
  if (all.empty()) return 0.0;
  const double norm = at::linalg_vector_norm(at::stack(at::_foreach_norm(all))).item<double>();
  if (limit > 0.0 && norm > limit) at::_foreach_mul_(all, limit / norm);
  return norm;
}

void AdamW::step(double learning_rate) {
  const c10::NoGradGuard no_gradient;
  ++steps_;
  for (Group& group : groups_) {
    std::vector<at::Tensor> values, gradients, first_moments, second_moments, steps;
    for (Piece& piece : group.pieces) {
      if (piece.count == 0) continue;
      values.push_back(piece.values);
      gradients.push_back(piece.of(gradient(piece)));
      first_moments.push_back(piece.first_moment);
      second_moments.push_back(piece.second_moment);
      steps.push_back(piece.step.fill_(steps_));
    }
    if (values.empty()) continue;
    at::_fused_adamw_(values, gradients, first_moments, second_moments, {}, steps, learning_rate, options_.beta1,
                      options_.beta2, group.weight_decay, options_.epsilon, /*amsgrad=*/false, /*maximize=*/false);
  }
}

void AdamW::clear_gradients() {
  for (const Group& group : groups_) {
    for (const Piece& piece : group.pieces) piece.parameter.mutable_grad().reset();
  }
}

// Flat: the trainable parameters' moments laid end to end.
at::Tensor AdamW::gather_flat(at::Tensor Piece::*moment, const GatherShards& gather) const {
  at::Tensor part;
  for (const Group& group : groups_) {
    for (const Piece& piece : group.pieces) {
      if (!part.defined()) part = at::zeros({shard_->count}, piece.values.options());
      if (piece.count == 0) continue;
      part.narrow(0, piece.place + piece.first - shard_->first, piece.count).copy_((piece.*moment).view(-1));
    }
  }
  return gather(part);
}

std::vector<std::pair<std::string, at::Tensor>> AdamW::moments(const GatherShards& gather) const {
  const c10::NoGradGuard no_gradient;
  at::Tensor first, second;
  if (shard_) {
    first = gather_flat(&Piece::first_moment, gather);
    second = gather_flat(&Piece::second_moment, gather);
  }
  const auto whole = [&](const Piece& piece, const at::Tensor& own, const at::Tensor& flat) {
    if (!shard_) return own;
    return flat.narrow(0, piece.place, piece.parameter.numel()).view(piece.parameter.sizes());
  };
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const Group& group : groups_) {
    for (const Piece& piece : group.pieces) {
      tensors.emplace_back("first_moment." + piece.name, whole(piece, piece.first_moment, first));
      tensors.emplace_back("second_moment." + piece.name, whole(piece, piece.second_moment, second));
    }
  }
  return tensors;
}

void AdamW::save(const std::filesystem::path& file, const GatherShards& gather) const {
  write_safetensors(file, moments(gather));
}

void AdamW::load(const std::filesystem::path& file, std::int64_t steps) {
  const c10::NoGradGuard no_gradient;
  const SafetensorsFile stored(file);
  const auto copy = [&](const std::string& name, const Piece& piece, at::Tensor& moment) {
    const auto entry = stored.entries().find(name);
    if (entry == stored.entries().end()) throw Error(fmt::format("{}: tensor {} is missing", file.string(), name));
    if (at::IntArrayRef(entry->second.shape) != piece.parameter.sizes()) {
      throw Error(fmt::format("{}: tensor {} has shape ({}), the model's is ({})", file.string(), name,
                              fmt::join(entry->second.shape, ", "), fmt::join(piece.parameter.sizes(), ", ")));
    }
    if (piece.count > 0) moment.copy_(piece.of(stored.tensor(name)));
  };
  for (Group& group : groups_) {
    for (Piece& piece : group.pieces) {
      copy("first_moment." + piece.name, piece, piece.first_moment);
      copy("second_moment." + piece.name, piece, piece.second_moment);
    }
  }
  steps_ = steps;
}

}  // namespace tda
