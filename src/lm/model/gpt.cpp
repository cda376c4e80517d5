#include "lm/model/gpt.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cmath>

#include "lm/error.h"
#include "lm/model/initialization.h"
#include "lm/model/normalization.h"
#include "tda/attention_cuda.h"

namespace tda {
namespace {

ParameterSpec matrix(std::string name, std::int64_t rows, std::int64_t columns, ParameterRole role, double deviation) {
  return {.name = std::move(name), .shape = {rows, columns}, .role = role, .deviation = deviation, .decay = true};
}

ParameterSpec gain(std::string name, std::int64_t size) {
  return {.name = std::move(name), .shape = {size}, .role = ParameterRole::kNorm, .mean = 1.0};
}

const ModelConfig& validated(const ModelConfig& config) {
  config.validate();
  return config;
}

// A device tensor is not read here: that would stall it, and the device reports the index itself.
void check_ids(const at::Tensor& ids, std::int64_t vocabulary) {
  if (ids.dim() != 2 || ids.scalar_type() != at::kLong) {
    throw Error(fmt::format("ids has {} dimensions and type {}, expected (B, T) of type int64", ids.dim(),
                            c10::toString(ids.scalar_type())));
  }
  if (!ids.is_cpu() || ids.numel() == 0) return;
  const std::int64_t low = ids.min().item<std::int64_t>(), high = ids.max().item<std::int64_t>();
  if (low < 0 || high >= vocabulary) {
    throw Error(fmt::format("token id {} is out of range, expected 0 to {}", low < 0 ? low : high, vocabulary - 1));
  }
}

}  // namespace

Gpt::Gpt(const ModelConfig& config)
    : config_(validated(config)),
      mechanism_(make_attention_mechanism(config)),
      rotary_(mechanism_->layout().head_dim, config.rope_theta, config.rope_scaling) {
  const std::int64_t width = config.width, vocabulary = config.vocabulary;
  embedding_ =
      add_parameter("", matrix("embedding.weight", vocabulary, width, ParameterRole::kEmbedding, kInitialDeviation));
  for (std::int64_t layer = 0; layer < config.layers; ++layer) add_layer(layer);
  screening_counters_.resize(layers_.size());
  final_norm_ = add_parameter("", gain("final_norm.weight", width));
  head_ = add_parameter("", matrix("head.weight", vocabulary, width, ParameterRole::kHead, kInitialDeviation));
}

std::size_t Gpt::add_parameter(const std::string& prefix, ParameterSpec spec) {
  auto tensor = at::zeros(spec.shape, at::kFloat);
  tensor.set_requires_grad(spec.trainable);
  parameters_.push_back({prefix + spec.name, tensor, spec.decay, std::move(spec)});
  return parameters_.size() - 1;
}

void Gpt::add_layer(std::int64_t index) {
  const HeadLayout heads = mechanism_->layout();
  const std::int64_t width = config_.width;
  const std::int64_t query_rows = heads.heads * heads.head_dim, value_rows = heads.heads * heads.value_dim;
  const double into_residual = kInitialDeviation / std::sqrt(2.0 * static_cast<double>(config_.layers));
  const std::string prefix = fmt::format("layers.{}.", index), attention = prefix + "attention.";
  const auto projection = [&](std::string name, std::int64_t rows) {
    return add_parameter(attention, matrix(std::move(name), rows, width, ParameterRole::kAttention, kInitialDeviation));
  };

  Layer layer;
  layer.attention_norm = add_parameter(prefix, gain("attention_norm.weight", width));
  for (int view = 1; view <= heads.views; ++view) {
    const std::string suffix = heads.views == 1 ? ".weight" : fmt::format("{}.weight", view);
    layer.projections.push_back(projection("query" + suffix, query_rows));
    layer.projections.push_back(projection("key" + suffix, query_rows));
  }
  layer.projections.push_back(projection("value.weight", value_rows));
  layer.output =
      add_parameter(attention, matrix("output.weight", width, value_rows, ParameterRole::kAttention, into_residual));
  for (auto& spec : mechanism_->parameters(index)) {
    layer.mechanism.push_back(add_parameter(attention, std::move(spec)));
  }
  layer.mlp_norm = add_parameter(prefix, gain("mlp_norm.weight", width));
  layer.up = add_parameter(prefix, matrix("mlp.up.weight", 4 * width, width, ParameterRole::kMlp, kInitialDeviation));
  layer.down = add_parameter(prefix, matrix("mlp.down.weight", width, 4 * width, ParameterRole::kMlp, into_residual));
  layers_.push_back(std::move(layer));
}

void Gpt::initialize(std::uint64_t seed) {
  at::NoGradGuard no_gradient;
  for (auto& parameter : parameters_) {
    const auto& spec = parameter.spec;
    if (spec.deviation == 0.0) {
      parameter.tensor.fill_(spec.mean);
    } else {
      const auto values = at::empty(spec.shape, at::kFloat);
      fill_normal(values, seed, parameter.name, spec.mean, spec.deviation);
      parameter.tensor.copy_(values);
    }
  }
}

ParameterCount Gpt::parameter_count() const {
  ParameterCount count;
  for (const auto& parameter : parameters_) {
    if (parameter.spec.growth != 0) continue;  // a clock
    const std::int64_t size = parameter.tensor.numel();
    count.total += size;
    switch (parameter.spec.role) {
      case ParameterRole::kEmbedding:
        count.embedding += size;
        break;
      case ParameterRole::kHead:
        count.head += size;
        break;
      case ParameterRole::kAttention:
        count.attention += size;
        break;
      case ParameterRole::kMlp:
        count.mlp += size;
        break;
      case ParameterRole::kNorm:
        count.norm += size;
        break;
      case ParameterRole::kMechanism:
        count.mechanism += size;
        break;
    }
  }
  return count;
}

void Gpt::to(at::Device device) {
  for (auto& parameter : parameters_) {
    parameter.tensor = parameter.tensor.detach().to(device).set_requires_grad(parameter.spec.trainable);
  }
}

at::Device Gpt::device() const { return parameters_.front().tensor.device(); }

void Gpt::after_optimizer_step() {
  at::NoGradGuard no_gradient;
  for (auto& parameter : parameters_) {
    const auto& spec = parameter.spec;
    if (spec.growth != 0) parameter.tensor.add_(spec.growth);
    if (spec.bounds) parameter.tensor.clamp_(spec.bounds->first, spec.bounds->second);
  }
}

Gpt::PreparedWeights Gpt::prepare() const {
  PreparedWeights weights;
  weights.compute_type = precision_ == Precision::kBFloat16 ? at::kBFloat16 : at::kFloat;
  const auto master = [&](std::size_t index) { return parameters_[index].tensor; };
  const auto compute = [&](std::size_t index) { return master(index).to(weights.compute_type); };
  weights.embedding = master(embedding_);
  weights.final_norm = master(final_norm_);
  weights.head = compute(head_);
  for (const auto& layer : layers_) {
    PreparedLayer prepared;
    prepared.attention_norm = master(layer.attention_norm);
    prepared.mlp_norm = master(layer.mlp_norm);
    std::vector<at::Tensor> projections;
    for (const auto index : layer.projections) projections.push_back(master(index));
    prepared.projections = at::cat(projections).to(weights.compute_type);
    prepared.output = compute(layer.output);
    prepared.up = compute(layer.up);
    prepared.down = compute(layer.down);
    for (const auto index : layer.mechanism) prepared.mechanism.push_back(master(index));
    weights.layers.push_back(std::move(prepared));
  }
  return weights;
}

const at::Tensor& Gpt::screening_counters(std::int64_t layer, const at::Tensor& q) {
  auto& counters = screening_counters_[static_cast<std::size_t>(layer)];
  if (!counters.defined() || counters.device() != q.device()) {
    counters = at::zeros({q.size(1), kScreeningCounters}, q.options().dtype(at::kInt));
  }
  return counters;
}

at::Tensor Gpt::attention(const PreparedWeights& weights, std::int64_t layer, const at::Tensor& normalized,
                          std::int64_t first_position, const ForwardOptions& options) {
  const auto& prepared = weights.layers[static_cast<std::size_t>(layer)];
  const auto joined = at::linear(normalized, prepared.projections);
  const auto head_type = mechanism_->head_type(weights.compute_type, joined.device());
  ProjectedHeads heads = rotary_.split(joined, mechanism_->layout(), first_position, head_type);
  heads.hidden = normalized;
  heads.layer = layer;
  if (options.cache != nullptr) {
    const auto all = options.cache->append(layer, heads.k, heads.v);
    heads.k = all.k;
    heads.v = all.v;
  }
  if (options.cache == nullptr) heads.screening_counters = screening_counters(layer, heads.q[0]);
  if (options.observer) options.observer(layer, heads, prepared.mechanism);
  const auto mixed = mechanism_->attend(heads, prepared.mechanism);
  if (options.statistics != nullptr) {
    at::NoGradGuard no_gradient;
    options.statistics->add(layer, mechanism_->count(heads, prepared.mechanism));
  }
  return at::linear(mixed.to(weights.compute_type), prepared.output);
}

at::Tensor Gpt::hidden_states(const PreparedWeights& weights, const at::Tensor& ids, const ForwardOptions& options) {
  const auto type = weights.compute_type;
  const std::int64_t first_position = options.cache != nullptr ? options.cache->length() : 0;
  // The residual stream stays fp32: sums of 2L small updates lose their low bits in bf16.
  at::Tensor x = at::embedding(weights.embedding, ids);
  at::Tensor delta;  // of the block before; joined with x on the way into the next norm
  const auto enter = [&](const at::Tensor& gain) {
    const auto [sum, normalized] = add_layer_norm(x, delta, gain, type);
    x = sum;
    return normalized;
  };
  for (std::int64_t layer = 0; layer < config_.layers; ++layer) {
    const auto& prepared = weights.layers[static_cast<std::size_t>(layer)];
    delta = attention(weights, layer, enter(prepared.attention_norm), first_position, options);
    delta = at::linear(at::gelu(at::linear(enter(prepared.mlp_norm), prepared.up)), prepared.down);
  }
  if (options.cache != nullptr) options.cache->advance(ids.size(1));
  if (options.last_row_only) {
    x = x.narrow(1, x.size(1) - 1, 1);
    delta = delta.narrow(1, delta.size(1) - 1, 1);
  }
  return enter(weights.final_norm);
}

at::Tensor Gpt::forward(const PreparedWeights& weights, const at::Tensor& ids, const ForwardOptions& options) {
  check_ids(ids, config_.vocabulary);
  return at::linear(hidden_states(weights, ids, options), weights.head);
}

at::Tensor Gpt::forward(const at::Tensor& ids) { return forward(prepare(), ids, {}); }

at::Tensor Gpt::loss(const at::Tensor& ids, const at::Tensor& targets, AttentionStatistics* statistics) {
  if (targets.sizes() != ids.sizes()) {
    throw Error(fmt::format("targets has shape ({}), expected that of ids, ({})", fmt::join(targets.sizes(), ", "),
                            fmt::join(ids.sizes(), ", ")));
  }
  check_ids(targets, config_.vocabulary);
  const auto logits = forward(prepare(), ids, {.statistics = statistics});
  return at::cross_entropy_loss(logits.flatten(0, 1).to(at::kFloat), targets.flatten());
}

}  // namespace tda
