#include "lm/data/tokenizer_files.h"

#include <fmt/format.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "lm/error.h"

namespace tda {

std::string read_file(const std::filesystem::path& path) {
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::ostringstream content;
  // A stream that receives not one byte reports failure, so an empty file is told from an unreadable one first.
  if (file && file.peek() != std::ifstream::traits_type::eof()) content << file.rdbuf();
  if (!file.is_open() || file.bad() || !content) {
    throw Error(fmt::format("cannot read {}: {}", path.string(), errno != 0 ? std::strerror(errno) : "input error"));
  }
  if (std::filesystem::is_directory(path)) {
    throw Error(fmt::format("cannot read {}: it is a folder", path.string()));
  }
  return std::move(content).str();
}

void write_file(const std::filesystem::path& path, std::string_view content) {
  errno = 0;
  std::ofstream file(path, std::ios::binary | std::ios::trunc);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  file.close();
  if (!file) {
    throw Error(fmt::format("cannot write {}: {}", path.string(), errno != 0 ? std::strerror(errno) : "output error"));
  }
}

void write_tokenizer_description(const std::filesystem::path& directory, const Tokenizer& tokenizer) {
  const nlohmann::ordered_json description = {
      {"type", tokenizer.name()},
      {"vocabulary_size", tokenizer.vocabulary_size()},
      {"padded_vocabulary_size", tokenizer.padded_vocabulary_size()},
      {"end_of_text", tokenizer.end_of_text()},
  };
  write_file(directory / "tokenizer.json", description.dump(2) + "\n");
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
