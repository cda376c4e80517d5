#include "lm/training/training_state.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "lm/durable_file.h"
#include "lm/error.h"

namespace tda {
namespace {

using nlohmann::ordered_json;

ordered_json describe(const DatasetDescription& dataset) {
  return {{"tokenizer", dataset.tokenizer},
          {"vocabulary_size", dataset.vocabulary_size},
          {"train_tokens", dataset.train_tokens},
          {"val_tokens", dataset.validation_tokens}};
}

}  // namespace

void save_training_state(const std::filesystem::path& file, const TrainingState& state,
                         const DatasetDescription& dataset) {
  const ordered_json json = {{"step", state.step},
                             {"tokens", state.tokens},
                             {"next_window", state.next_window},
                             {"seconds", state.seconds},
                             {"metrics_bytes", state.metrics_bytes},
                             {"samples_bytes", state.samples_bytes},
                             {"start_weights", state.start_weights},
                             {"dataset", describe(dataset)}};
  write_file_durably(file, json.dump(2) + "\n");
}

TrainingState load_training_state(const std::filesystem::path& file, const DatasetDescription& dataset) {
  TrainingState state;
  ordered_json found;
  try {
    const ordered_json json = ordered_json::parse(read_file(file));
    json.at("step").get_to(state.step);
    json.at("tokens").get_to(state.tokens);
    json.at("next_window").get_to(state.next_window);
    json.at("seconds").get_to(state.seconds);
    json.at("metrics_bytes").get_to(state.metrics_bytes);
    json.at("samples_bytes").get_to(state.samples_bytes);
    state.start_weights = json.value("start_weights", "");  // older runs do not know it
    found = json.at("dataset");
  } catch (const ordered_json::exception& error) {
    throw Error(fmt::format("{} is not the state of a training run: {}", file.string(), error.what()));
  }
  const ordered_json expected = describe(dataset);
  for (const auto& [key, value] : expected.items()) {
    if (!found.contains(key) || found[key] != value) {
      throw Error(fmt::format("data.path holds another dataset than the run began with: {} is {}, expected {}", key,
                              value.dump(), found.contains(key) ? found[key].dump() : "unknown"),
                  "resume with the same data, or train into another --output");
    }
  }
  return state;
}

}  // namespace tda
