#include "lm/analysis/heads_dump.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <fmt/format.h>

#include <string>
#include <utility>
#include <vector>

#include "lm/error.h"
#include "lm/model/safetensors.h"

namespace tda {
namespace {

at::Tensor stored(const at::Tensor& tensor) { return tensor.detach().to(at::kCPU, at::kFloat).contiguous(); }

}  // namespace

void dump_heads(Gpt& model, const at::Tensor& ids, std::int64_t layer, const std::filesystem::path& file) {
  if (layer < 0 || layer >= model.config().layers) {
    throw Error(fmt::format("--dump-qkv {}: expected a layer from 0 to {}", layer, model.config().layers - 1));
  }
  const at::NoGradGuard no_gradient;
  const int views = model.mechanism().layout().views;
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  Gpt::ForwardOptions options;
  options.last_row_only = true;
  options.observer = [&](std::int64_t index, const ProjectedHeads& heads, std::span<const at::Tensor>) {
    if (index != layer) return;
    for (int view = 0; view < views; ++view) {
      const std::string suffix = views > 1 ? std::to_string(view + 1) : "";
      tensors.emplace_back("q" + suffix, stored(heads.q[static_cast<std::size_t>(view)]));
      tensors.emplace_back("k" + suffix, stored(heads.k[static_cast<std::size_t>(view)]));
    }
    tensors.emplace_back("v", stored(heads.v));
  };
  model.forward(model.prepare(), ids, options);
  const std::string prefix = fmt::format("layers.{}.attention.", layer);
  for (const NamedParameter& parameter : model.parameters()) {
    for (const char* name : {"beta", "lambda"}) {
      if (parameter.name == prefix + name) tensors.emplace_back(name, stored(parameter.tensor));
    }
  }
  write_safetensors(file, tensors, {{"layer", std::to_string(layer)}, {"mechanism", model.config().mechanism}});
}

}  // namespace tda
