#include "lm/data/tokenizer_files.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>

#include "lm/durable_file.h"
#include "lm/error.h"

namespace tda {

void write_tokenizer_description(const std::filesystem::path& directory, const Tokenizer& tokenizer) {
  const nlohmann::ordered_json description = {
      {"type", tokenizer.name()},
      {"vocabulary_size", tokenizer.vocabulary_size()},
      {"padded_vocabulary_size", tokenizer.padded_vocabulary_size()},
      {"end_of_text", tokenizer.end_of_text()},
  };
  write_file_durably(directory / "tokenizer.json", description.dump(2) + "\n");
}

std::string read_tokenizer_type(const std::filesystem::path& directory) {
  const auto path = directory / "tokenizer.json";
  try {
    return nlohmann::json::parse(read_file(path)).at("type").get<std::string>();
  } catch (const nlohmann::json::exception& error) {
    throw Error(fmt::format("{} describes no tokenizer: {}", path.string(), error.what()));
  }
}

}  // namespace tda
