// Manifest and config.json of a step folder: understood, or refused with an Error. The first byte chooses which.
#include <fstream>
#include <nlohmann/json.hpp>

#include "file_in_memory.h"
#include "lm/error.h"
#include "lm/model/model_config.h"
#include "lm/training/checkpoint.h"

namespace {

std::filesystem::path step_folder() {
  static const std::filesystem::path folder = [] {
    auto path = std::filesystem::temp_directory_path() / ("fuzz-checkpoint-" + std::to_string(getpid()));
    std::filesystem::create_directories(path);
    std::ofstream(path / "config.json") << "{}";
    return path;
  }();
  return folder;
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string text(reinterpret_cast<const char*>(data + 1), size - 1);
  try {
    if (data[0] % 2 == 0) {
      std::ofstream(step_folder() / "manifest.json", std::ios::binary) << text;
      tda::find_damage(step_folder());
    } else {
      const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
      if (json.is_discarded()) return 0;
      const auto config = tda::ModelConfig::from_json(json, "config.json");
      tda::fuzz::require(tda::ModelConfig::from_json(config.to_json(), "again") == config);
    }
  } catch (const tda::Error&) {
  }
  return 0;
}
