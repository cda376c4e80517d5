#include "lm/model/attention_mechanism.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "lm/error.h"
#include "lm/model/mechanisms/registry.h"
#include "lm/nearest_name.h"

namespace tda {
namespace {

struct Registered {
  std::string_view name;
  std::unique_ptr<AttentionMechanism> (*make)(const ModelConfig&);
};

constexpr Registered kRegistry[] = {
    {"softmax", make_softmax},
    {"rela", make_rela},
    {"tra", make_tra},
    {"tda", make_tda},
};

}  // namespace

std::unique_ptr<AttentionMechanism> make_attention_mechanism(const ModelConfig& config) {
  for (const auto& entry : kRegistry) {
    if (entry.name == config.mechanism) return entry.make(config);
  }
  const auto names = attention_mechanism_names();
  const std::vector<std::string> candidates(names.begin(), names.end());
  const auto nearest = nearest_name(config.mechanism, candidates);
  throw Error(
      fmt::format("model.mechanism is \"{}\", expected one of {}", config.mechanism, fmt::join(candidates, ", ")),
      nearest ? fmt::format("did you mean \"{}\"?", *nearest) : "");
}

std::vector<std::string_view> attention_mechanism_names() {
  std::vector<std::string_view> names;
  for (const auto& entry : kRegistry) names.push_back(entry.name);
  return names;
}

}  // namespace tda
