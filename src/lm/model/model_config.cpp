#include "lm/model/model_config.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "lm/error.h"
#include "lm/model/mechanism_option.h"
#include "lm/nearest_name.h"

namespace tda {
namespace {

constexpr std::int64_t kLargest = std::int64_t{1} << 24;  // far beyond any model, small enough that products fit

void require(bool holds, const char* key, const std::string& value, const char* expected) {
  if (!holds) throw Error(fmt::format("model.{} is {}, expected {}", key, value, expected));
}

void require_size(const char* key, std::int64_t value) {
  require(value >= 1 && value <= kLargest, key, std::to_string(value), "a whole number of at least 1");
}

template <typename T>
T read(const nlohmann::json& json, const char* key, const std::string& source) {
  const auto found = json.find(key);
  if (found == json.end()) throw Error(fmt::format("{}: the key \"{}\" is missing", source, key));
  const bool fits = std::is_same_v<T, bool>          ? found->is_boolean()
                    : std::is_same_v<T, std::string> ? found->is_string()
                    : std::is_integral_v<T>          ? found->is_number_integer()
                                                     : found->is_number();
  if (!fits) {
    const char* expected = std::is_same_v<T, bool>          ? "true or false"
                           : std::is_same_v<T, std::string> ? "a string"
                           : std::is_integral_v<T>          ? "a whole number"
                                                            : "a number";
    throw Error(fmt::format("{}: \"{}\" is {}, expected {}", source, key, found->dump(), expected));
  }
  return found->get<T>();
}

void require_option(const MechanismOption& option, const ModelConfig& config) {
  std::visit(
      [&](auto member) {
        const auto& value = config.*member;
        using Value = std::decay_t<decltype(value)>;
        if constexpr (std::is_same_v<Value, std::string>) {
          const bool known = std::find(option.choices.begin(), option.choices.end(), value) != option.choices.end();
          if (known) return;
          const auto nearest = nearest_name(value, option.choices);
          throw Error(
              fmt::format("model.{} is \"{}\", expected one of {}", option.key, value, fmt::join(option.choices, ", ")),
              nearest ? fmt::format("did you mean \"{}\"?", *nearest) : "");
        } else if constexpr (!std::is_same_v<Value, bool>) {
          const std::string expected = option.range.text(std::is_integral_v<Value> ? "an integer" : "a number");
          require(option.range.contains(static_cast<double>(value)), option.key, fmt::to_string(value),
                  expected.c_str());
        }
      },
      option.member);
}

double read_rope_scaling(const nlohmann::json& json, const std::string& source) {
  const auto found = json.find("rope_scaling");
  if (found == json.end() || found->is_null()) return 1.0;
  if (!found->is_object() || read<std::string>(*found, "rope_type", source) != "ntk-aware") {
    throw Error(fmt::format("{}: \"rope_scaling\" is {}, expected null or an object with \"rope_type\": \"ntk-aware\"",
                            source, found->dump()));
  }
  return read<double>(*found, "factor", source);
}

}  // namespace

std::string_view to_string(Precision precision) { return precision == Precision::kBFloat16 ? "bf16" : "fp32"; }

Precision parse_precision(std::string_view text) {
  if (text == "fp32") return Precision::kFloat32;
  if (text == "bf16") return Precision::kBFloat16;
  throw Error(fmt::format("precision is \"{}\", expected \"fp32\" or \"bf16\"", text));
}

std::string_view to_string(ViewHeads view_heads) { return view_heads == ViewHeads::kHalved ? "halved" : "full"; }

ViewHeads parse_view_heads(std::string_view text) {
  if (text == "full") return ViewHeads::kFull;
  if (text == "halved") return ViewHeads::kHalved;
  throw Error(fmt::format("view_heads is \"{}\", expected \"full\" or \"halved\"", text));
}

void ModelConfig::validate() const {
  require_size("layers", layers);
  require_size("heads", heads);
  require_size("width", width);
  require_size("context", context);
  require_size("vocabulary", vocabulary);
  if (width % heads != 0) {
    throw Error(fmt::format("model.width is {}, expected a multiple of model.heads = {}", width, heads));
  }
  if (head_dim() % 2 != 0 || head_dim() > 256) {
    throw Error(
        fmt::format("model.width / model.heads is {}, expected an even head dimension of at most 256", head_dim()));
  }
  if (view_heads == ViewHeads::kHalved && heads % 2 != 0) {
    throw Error(fmt::format("model.heads is {}, expected an even number with view_heads = \"halved\"", heads));
  }
  require(std::isfinite(rope_theta) && rope_theta > 1, "rope_theta", fmt::to_string(rope_theta), "a number above 1");
  require(std::isfinite(rope_scaling) && rope_scaling >= 1, "rope_scaling", fmt::to_string(rope_scaling),
          "a factor of at least 1");
  require(rope_scaling == 1 || head_dim() > 2, "rope_scaling", fmt::to_string(rope_scaling),
          "1, since scaling needs a head dimension above 2");
  require(std::isfinite(beta), "beta", fmt::to_string(beta), "a finite number");
  require(lambda >= 0 && lambda <= 1, "lambda", fmt::to_string(lambda), "a number in [0, 1]");
  require(std::isfinite(kappa) && kappa > 0, "kappa", fmt::to_string(kappa), "a number above 0");
  require(std::isfinite(power) && power >= 1, "power", fmt::to_string(power), "a number of at least 1");
  require(std::isfinite(head_norm_eps) && head_norm_eps >= 0, "head_norm_eps", fmt::to_string(head_norm_eps),
          "a number of at least 0");
  for (const auto& option : mechanism_options()) require_option(option, *this);
}

nlohmann::json ModelConfig::to_json() const {
  nlohmann::json json;
  json["model_type"] = "tda";
  json["num_hidden_layers"] = layers;
  json["num_attention_heads"] = heads;
  json["hidden_size"] = width;
  json["intermediate_size"] = 4 * width;
  json["vocab_size"] = vocabulary;
  json["max_position_embeddings"] = context;
  json["rope_theta"] = rope_theta;
  json["rope_scaling"] = nullptr;
  if (rope_scaling != 1.0) json["rope_scaling"] = {{"rope_type", "ntk-aware"}, {"factor", rope_scaling}};
  json["hidden_act"] = "gelu";
  json["layer_norm_eps"] = 1e-5;
  json["tie_word_embeddings"] = false;
  json["mechanism"] = mechanism;
  json["view_heads"] = to_string(view_heads);
  json["beta"] = beta;
  json["lambda"] = lambda;
  json["learn_beta"] = learn_beta;
  json["learn_lambda"] = learn_lambda;
  json["kappa"] = kappa;
  json["power"] = power;
  json["head_norm_eps"] = head_norm_eps;
  for (const auto& option : mechanism_options()) {
    if (option.read_by(mechanism)) std::visit([&](auto member) { json[option.key] = this->*member; }, option.member);
  }
  return json;
}

ModelConfig ModelConfig::from_json(const nlohmann::json& json, const std::string& source) {
  if (!json.is_object()) throw Error(fmt::format("{}: expected a JSON object", source));
  ModelConfig config;
  config.layers = read<std::int64_t>(json, "num_hidden_layers", source);
  config.heads = read<std::int64_t>(json, "num_attention_heads", source);
  config.width = read<std::int64_t>(json, "hidden_size", source);
  config.vocabulary = read<std::int64_t>(json, "vocab_size", source);
  config.context = read<std::int64_t>(json, "max_position_embeddings", source);
  config.rope_theta = read<double>(json, "rope_theta", source);
  config.rope_scaling = read_rope_scaling(json, source);
  config.mechanism = read<std::string>(json, "mechanism", source);
  config.beta = read<double>(json, "beta", source);
  config.lambda = read<double>(json, "lambda", source);
  config.learn_beta = read<bool>(json, "learn_beta", source);
  config.learn_lambda = read<bool>(json, "learn_lambda", source);
  config.kappa = read<double>(json, "kappa", source);
  config.power = read<double>(json, "power", source);
  config.head_norm_eps = read<double>(json, "head_norm_eps", source);
  for (const auto& option : mechanism_options()) {
    if (!json.contains(option.key)) continue;
    std::visit(
        [&](auto member) { config.*member = read<std::decay_t<decltype(config.*member)>>(json, option.key, source); },
        option.member);
  }
  try {
    config.view_heads = parse_view_heads(read<std::string>(json, "view_heads", source));
    config.validate();
  } catch (const Error& error) {
    const std::string message = error.what();
    throw Error(message.starts_with(source) ? message : fmt::format("{}: {}", source, message), error.hint());
  }
  return config;
}

}  // namespace tda
