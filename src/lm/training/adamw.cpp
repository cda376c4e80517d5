#include "lm/training/adamw.h"

#include <ATen/ops/_foreach_mul.h>
#include <ATen/ops/_foreach_norm.h>
#include <ATen/ops/_fused_adamw.h>
#include <ATen/ops/full.h>
#include <ATen/ops/linalg_vector_norm.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/zeros_like.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include "lm/error.h"
#include "lm/model/safetensors.h"

namespace tda {

AdamW::AdamW(const std::vector<NamedParameter>& parameters, const AdamWOptions& options)
    : options_(options), groups_(2) {
  groups_[0].weight_decay = options.weight_decay;
  for (const NamedParameter& parameter : parameters) {
    if (!parameter.tensor.requires_grad()) continue;
    Group& group = groups_[parameter.decay ? 0 : 1];
    group.names.push_back(parameter.name);
    group.parameters.push_back(parameter.tensor);
    const at::Tensor detached = parameter.tensor.detach();
    group.first_moments.push_back(at::zeros_like(detached));
    group.second_moments.push_back(at::zeros_like(detached));
    group.steps.push_back(at::full({}, 0.0, detached.options()));
  }
}

std::vector<at::Tensor> AdamW::gradients(const Group& group) {
  std::vector<at::Tensor> gradients;
  gradients.reserve(group.parameters.size());
  for (const at::Tensor& parameter : group.parameters) {
    if (!parameter.grad().defined()) parameter.mutable_grad() = at::zeros_like(parameter.detach());
    gradients.push_back(parameter.grad());
  }
  return gradients;
}

double AdamW::clip_gradients(double limit) {
  const c10::NoGradGuard no_gradient;
  std::vector<at::Tensor> all;
  for (const Group& group : groups_) {
    for (at::Tensor& gradient : gradients(group)) all.push_back(std::move(gradient));
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
    if (group.parameters.empty()) continue;
    for (at::Tensor& step : group.steps) step.fill_(steps_);
    at::_fused_adamw_(group.parameters, gradients(group), group.first_moments, group.second_moments, {}, group.steps,
                      learning_rate, options_.beta1, options_.beta2, group.weight_decay, options_.epsilon,
                      /*amsgrad=*/false, /*maximize=*/false);
  }
}

void AdamW::clear_gradients() {
  for (const Group& group : groups_) {
    for (const at::Tensor& parameter : group.parameters) parameter.mutable_grad().reset();
  }
}

void AdamW::save(const std::filesystem::path& file) const {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const Group& group : groups_) {
    for (std::size_t i = 0; i < group.names.size(); ++i) {
      tensors.emplace_back("first_moment." + group.names[i], group.first_moments[i]);
      tensors.emplace_back("second_moment." + group.names[i], group.second_moments[i]);
    }
  }
  write_safetensors(file, tensors);
}

void AdamW::load(const std::filesystem::path& file, std::int64_t steps) {
  const c10::NoGradGuard no_gradient;
  const SafetensorsFile stored(file);
  const auto copy = [&](const std::string& name, at::Tensor& moment) {
    const auto entry = stored.entries().find(name);
    if (entry == stored.entries().end()) throw Error(fmt::format("{}: tensor {} is missing", file.string(), name));
    if (at::IntArrayRef(entry->second.shape) != moment.sizes()) {
      throw Error(fmt::format("{}: tensor {} has shape ({}), the model's is ({})", file.string(), name,
                              fmt::join(entry->second.shape, ", "), fmt::join(moment.sizes(), ", ")));
    }
    moment.copy_(stored.tensor(name));
  };
  for (Group& group : groups_) {
    for (std::size_t i = 0; i < group.names.size(); ++i) {
      copy("first_moment." + group.names[i], group.first_moments[i]);
      copy("second_moment." + group.names[i], group.second_moments[i]);
    }
  }
  steps_ = steps;
}

}  // namespace tda
