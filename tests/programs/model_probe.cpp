// Shows a model from inside, for tests in Python:
//   model_probe create CONFIG.json SEED FOLDER             initializes a model and saves it
//   model_probe run FOLDER INPUTS OUTPUTS fp32|bf16        reads `ids` and `targets` (B, T) int64 of one safetensors
//                                                          file, writes `logits`, `loss` and every gradient to another
#include <ATen/ATen.h>

#include <cstdio>
#include <exception>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "lm/model/gpt.h"
#include "lm/model/model_files.h"
#include "lm/model/safetensors.h"

namespace {

void create(const std::string& config, std::uint64_t seed, const std::string& folder) {
  std::ifstream file(config);
  tda::Gpt model(tda::ModelConfig::from_json(nlohmann::json::parse(file), config));
  model.initialize(seed);
  tda::save_model(folder, model);
}

void run(const std::string& folder, const std::string& inputs, const std::string& outputs,
         const std::string& precision) {
  const auto model = tda::load_model(folder);
  model->set_precision(tda::parse_precision(precision));
  const tda::SafetensorsFile file(inputs);
  const auto ids = file.tensor("ids"), targets = file.tensor("targets");
  std::vector<std::pair<std::string, at::Tensor>> results;
  results.emplace_back("logits", model->forward(ids).to(at::kFloat));
  const auto loss = model->loss(ids, targets);
  loss.backward();
  results.emplace_back("loss", loss);
  for (const auto& parameter : model->parameters()) {
    if (parameter.tensor.grad().defined()) results.emplace_back("grad." + parameter.name, parameter.tensor.grad());
  }
  tda::write_safetensors(outputs, results);
}

}  // namespace

int main(int argc, char** argv) {
  const std::string command = argc > 1 ? argv[1] : "";
  try {
    if (command == "create" && argc == 5) {
      create(argv[2], std::stoull(argv[3]), argv[4]);
    } else if (command == "run" && argc == 6) {
      run(argv[2], argv[3], argv[4], argv[5]);
    } else {
      std::fprintf(stderr, "usage: model_probe create CONFIG.json SEED FOLDER | run FOLDER INPUTS OUTPUTS PRECISION\n");
      return 2;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
  return 0;
}
