#include "lm/model/model_files.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <set>

#include "lm/error.h"
#include "lm/model/safetensors.h"

namespace tda {
namespace {

constexpr const char* kWeightsFile = "model.safetensors";
constexpr const char* kConfigFile = "config.json";

std::string shape_text(at::IntArrayRef shape) { return fmt::format("({})", fmt::join(shape, ", ")); }

}  // namespace

void save_model(const std::filesystem::path& folder, const Gpt& model) {
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const auto& parameter : model.parameters()) tensors.emplace_back(parameter.name, parameter.tensor);
  write_safetensors(folder / kWeightsFile, tensors, {{"format", "pt"}});
  errno = 0;
  std::ofstream file(folder / kConfigFile, std::ios::trunc);
  file << model.config().to_json().dump(2) << '\n';
  file.close();
  if (!file) throw Error(fmt::format("cannot write {}: {}", (folder / kConfigFile).string(), std::strerror(errno)));
}

ModelConfig load_model_config(const std::filesystem::path& folder) {
  const auto path = folder / kConfigFile;
  errno = 0;
  std::ifstream file(path);
  if (!file) {
    throw Error(fmt::format("{}: {}", path.string(), std::strerror(errno)),
                "a checkpoint is a folder with model.safetensors and config.json");
  }
  const auto json = nlohmann::json::parse(file, nullptr, false);
  if (json.is_discarded()) throw Error(fmt::format("{}: not valid JSON", path.string()));
  return ModelConfig::from_json(json, path.string());
}

void load_parameters(const std::filesystem::path& file, Gpt& model) {
  const SafetensorsFile weights(file);
  std::set<std::string> expected;
  for (const auto& parameter : model.parameters()) {
    expected.insert(parameter.name);
    const auto found = weights.entries().find(parameter.name);
    if (found == weights.entries().end()) {
      throw Error(fmt::format("{}: tensor {} of shape {} is missing", file.string(), parameter.name,
                              shape_text(parameter.tensor.sizes())));
    }
    const auto& entry = found->second;
    if (parameter.tensor.sizes() != at::IntArrayRef(entry.shape)) {
      throw Error(fmt::format("{}: tensor {} has shape {}, expected {}", file.string(), parameter.name,
                              shape_text(entry.shape), shape_text(parameter.tensor.sizes())));
    }
    if (!at::isFloatingType(entry.type)) {
      throw Error(fmt::format("{}: tensor {} has type {}, expected a floating type", file.string(), parameter.name,
                              c10::toString(entry.type)));
    }
  }
  for (const auto& [name, entry] : weights.entries()) {
    if (!expected.contains(name)) {
      throw Error(fmt::format("{}: tensor {} is unknown to a {} model with {} layers", file.string(), name,
                              model.config().mechanism, model.config().layers));
    }
  }
  at::NoGradGuard no_gradient;
  for (const auto& parameter : model.parameters()) {
    auto target = parameter.tensor;
    target.copy_(weights.tensor(parameter.name));
  }
}

std::unique_ptr<Gpt> load_model(const std::filesystem::path& folder) {
  auto model = std::make_unique<Gpt>(load_model_config(folder));
  load_parameters(folder / kWeightsFile, *model);
  return model;
}

}  // namespace tda
