// The language model: a decoder of pre-LayerNorm blocks with RoPE, an exact GELU MLP, and a pluggable attention.
//
//   x = embedding[id]; per layer x += attention(LN(x)), x += down(GELU(up(LN(x)))); logits = head(LN(x))
// LN has no bias and eps 1e-5; no matrix has a bias; the head is not tied. Matrices are [out, in].
#pragma once

#include <ATen/core/Tensor.h>

#include <array>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "lm/model/attention_mechanism.h"
#include "lm/model/attention_statistics.h"
#include "lm/model/key_value_cache.h"
#include "lm/model/model_config.h"
#include "lm/model/parameter.h"
#include "lm/model/rotary_embedding.h"

namespace tda {

class Gpt {
 public:
  // Zero parameters until initialize() or load_model(). Throws Error on a config that validate() refuses.
  explicit Gpt(const ModelConfig& config);

  const ModelConfig& config() const { return config_; }
  const AttentionMechanism& mechanism() const { return *mechanism_; }

  // Fills the parameters; the same seed gives the same bits on every machine and device.
  void initialize(std::uint64_t seed);

  // In file order: embedding, layers, final_norm, head.
  const std::vector<NamedParameter>& parameters() const { return parameters_; }
  ParameterCount parameter_count() const;

  Precision precision() const { return precision_; }
  void set_precision(Precision precision) { precision_ = precision; }
  void to(at::Device device);
  at::Device device() const;

  // ids: (B, T) int64 -> logits (B, T, vocabulary) in the compute dtype. Throws Error on an id outside the vocabulary.
  at::Tensor forward(const at::Tensor& ids);

  // Mean cross entropy in nats, fp32 scalar. ids, targets: (B, T) int64. With `statistics`, zeros of the attention maps
  // are added up there.
  at::Tensor loss(const at::Tensor& ids, const at::Tensor& targets, AttentionStatistics* statistics = nullptr);

  // Projects bounded parameters (lambda) back into their interval and moves clocks on. Call after every optimizer step.
  void after_optimizer_step();

  // Weights in the compute dtype with the projections of a layer joined in one matrix. forward() prepares its own each
  // time, since training changes them; a decoder prepares once and passes them to every step.
  struct PreparedLayer {
    at::Tensor attention_norm, projections, output, mlp_norm, up, down;
    std::vector<at::Tensor> mechanism;  // fp32
  };
  struct PreparedWeights {
    at::Tensor embedding, final_norm, head;
    std::vector<PreparedLayer> layers;
    at::ScalarType compute_type = at::kFloat;
  };
  PreparedWeights prepare() const;

  // Called with the heads that enter the mechanism of each layer.
  using Observer =
      std::function<void(std::int64_t layer, const ProjectedHeads& heads, std::span<const at::Tensor> parameters)>;

  struct ForwardOptions {
    KeyValueCache* cache = nullptr;  // ids continue the cached positions, which grow by T
    AttentionStatistics* statistics = nullptr;
    Observer observer = {};
    bool last_row_only = false;  // logits (B, 1, V) of the last position
  };
  at::Tensor forward(const PreparedWeights& weights, const at::Tensor& ids, const ForwardOptions& options);

 private:
  struct Layer {
    std::vector<std::size_t> projections;  // query*, key*, value: indices into parameters_
    std::size_t output, attention_norm, mlp_norm, up, down;
    std::vector<std::size_t> mechanism;
  };

  std::size_t add_parameter(const std::string& prefix, ParameterSpec spec);
  void add_layer(std::int64_t index);
  at::Tensor hidden_states(const PreparedWeights& weights, const at::Tensor& ids, const ForwardOptions& options);
  const at::Tensor& screening_counters(std::int64_t layer, const at::Tensor& q);
  at::Tensor attention(const PreparedWeights& weights, std::int64_t layer, const at::Tensor& normalized,
                       std::int64_t first_position, const ForwardOptions& options);

  ModelConfig config_;
  std::unique_ptr<AttentionMechanism> mechanism_;
  RotaryEmbedding rotary_;
  Precision precision_ = Precision::kFloat32;
  std::vector<NamedParameter> parameters_;
  std::vector<Layer> layers_;
  std::vector<at::Tensor> screening_counters_;  // of each layer
  std::size_t embedding_ = 0, final_norm_ = 0, head_ = 0;
};

}  // namespace tda
