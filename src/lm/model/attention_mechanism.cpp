#include "lm/model/attention_mechanism.h"

#include <ATen/ATen.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>

#include "lm/error.h"
#include "lm/model/mechanisms/registry.h"
#include "lm/model/row_ranges.h"
#include "lm/model/weight_counts.h"
#include "lm/nearest_name.h"

namespace tda {
namespace {

struct Registered {
  std::string name;
  MechanismMaker make;
};

// A function's static, because a RegisteredMechanism of another file may be constructed before this file's statics.
std::vector<Registered>& registry() {
#define TDA_REGISTER(name) {#name, make_##name},
  static std::vector<Registered> entries = {TDA_ATTENTION_MECHANISMS(TDA_REGISTER)};
#undef TDA_REGISTER
  return entries;
}

const Registered* find_registered(std::string_view name) {
  const auto found =
      std::find_if(registry().begin(), registry().end(), [&](const Registered& entry) { return entry.name == name; });
  return found == registry().end() ? nullptr : &*found;
}

// Some rows are again heads of their own: their queries are the last positions of the keys that they see.
ProjectedHeads rows_of(const ProjectedHeads& heads, const RowRange& range) {
  ProjectedHeads rows = heads;
  for (std::size_t view = 0; view < heads.q.size(); ++view) {
    if (!heads.q[view].defined()) continue;
    rows.q[view] = heads.q[view].narrow(2, range.first, range.rows);
    rows.k[view] = heads.k[view].narrow(2, 0, range.keys);
  }
  rows.v = heads.v.narrow(2, 0, range.keys);
  if (heads.hidden.defined()) rows.hidden = heads.hidden.narrow(1, range.first, range.rows);
  return rows;
}

}  // namespace

HeadLayout one_view_layout(const ModelConfig& config) {
  return {1, config.heads, config.head_dim(), config.head_dim()};
}

HeadLayout two_view_layout(const ModelConfig& config, ViewHeads view_heads) {
  const std::int64_t dim = config.head_dim();
  if (view_heads == ViewHeads::kFull) return {2, config.heads, dim, dim};
  if (config.heads % 2 != 0) {
    throw Error(
        fmt::format("model.heads is {}, expected an even number, since {} halves it", config.heads, config.mechanism));
  }
  return {2, config.heads / 2, dim, 2 * dim};
}

at::Tensor joined_heads(const at::Tensor& rows) { return rows.transpose(1, 2).flatten(2); }

WeightCounts AttentionMechanism::count(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const {
  const auto& q = heads.q[0];
  std::vector<at::Tensor> survivors;
  for (const RowRange& range : row_ranges(q.size(0) * q.size(1), q.size(2), heads.k[0].size(2), q.device())) {
    survivors.push_back(maps(rows_of(heads, range), parameters).effective.ne(0).sum(-1));
  }
  return count_from_survivors(at::cat(survivors, 2), heads.k[0].size(2));
}

std::unique_ptr<AttentionMechanism> make_attention_mechanism(const ModelConfig& config) {
  if (const Registered* entry = find_registered(config.mechanism)) return entry->make(config);
  const auto names = attention_mechanism_names();
  const std::vector<std::string> candidates(names.begin(), names.end());
  const auto nearest = nearest_name(config.mechanism, candidates);
  throw Error(
      fmt::format("model.mechanism is \"{}\", expected one of {}", config.mechanism, fmt::join(candidates, ", ")),
      nearest ? fmt::format("did you mean \"{}\"?", *nearest) : "");
}

std::vector<std::string_view> attention_mechanism_names() {
  std::vector<std::string_view> names;
  for (const auto& entry : registry()) names.push_back(entry.name);
  return names;
}

RegisteredMechanism::RegisteredMechanism(std::string name, MechanismMaker make) : name_(std::move(name)) {
  if (find_registered(name_) != nullptr) throw Error(fmt::format("the mechanism \"{}\" is registered twice", name_));
  registry().push_back({name_, make});
}

RegisteredMechanism::~RegisteredMechanism() {
  std::erase_if(registry(), [&](const Registered& entry) { return entry.name == name_; });
}

}  // namespace tda
