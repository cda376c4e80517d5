// The shape of a model: the keys of `[model]` in a recipe and of config.json beside the weights.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

namespace tda {

// How two-view mechanisms spend their projections: `full` gives each view its own heads x head_dim query and key
// (2 * width^2 more parameters a layer), `halved` gives heads/2 heads with values of 2 * head_dim, so that the
// parameter count is that of softmax. See docs/mechanisms.md.
enum class ViewHeads { kFull, kHalved };

// Arithmetic of forward and backward. Parameters, norm statistics, the residual stream and the loss are fp32 in both.
enum class Precision { kFloat32, kBFloat16 };

// "fp32" | "bf16"; parse_precision throws Error on anything else.
std::string_view to_string(Precision precision);
Precision parse_precision(std::string_view text);

// "full" | "halved"; parse_view_heads throws Error on anything else.
std::string_view to_string(ViewHeads view_heads);
ViewHeads parse_view_heads(std::string_view text);

struct ModelConfig {
  std::string mechanism = "tda";
  std::int64_t layers = 12;
  std::int64_t heads = 12;
  std::int64_t width = 768;
  std::int64_t context = 1024;      // longest training window, in tokens
  std::int64_t vocabulary = 50304;  // padded: rows of the embedding and of the head
  double rope_theta = 10000.0;
  double rope_scaling = 1.0;  // NTK-aware factor s >= 1: the base becomes rope_theta * s^(D / (D - 2))
  ViewHeads view_heads = ViewHeads::kFull;
  // Mechanisms with a threshold or a second view.
  double beta = 1.0;    // start value
  double lambda = 0.5;  // start value, in [0, 1]
  bool learn_beta = true;
  bool learn_lambda = true;
  double kappa = 1.0;
  double power = 2.0;
  double head_norm_eps = 1e-6;
  // Of single mechanisms; meanings and ranges: mechanism_option.cpp.
  std::string gate = "head";
  double ssmax_scale = 0.168;
  bool ssmax_bias = false;
  double entmax_alpha = 1.5;
  bool asentmax_bias = true;
  double lssar_power = 15.0;
  double lssar_offset = 1.0;
  std::string rela_norm = "rms";
  std::int64_t dex_annealing_steps = 1000;
  double softpick_eps = 1e-8;

  std::int64_t head_dim() const { return width / heads; }

  // Throws Error naming the key, its value and what was expected.
  void validate() const;

  // config.json: Hugging Face's names where one exists (num_hidden_layers, num_attention_heads, hidden_size,
  // vocab_size, max_position_embeddings, rope_theta, rope_scaling, intermediate_size, layer_norm_eps), ours otherwise.
  // Options of single mechanisms stand there for the mechanism that reads them.
  nlohmann::json to_json() const;
  // Throws Error, prefixed with `source`, on a missing key, a wrong type or a value that validate() refuses. Only an
  // option of a single mechanism may be missing and then has its default: older files do not know it.
  static ModelConfig from_json(const nlohmann::json& json, const std::string& source);

  bool operator==(const ModelConfig&) const = default;
};

}  // namespace tda
