#include "lm/data/dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "lm/error.h"

namespace tda {
namespace {

namespace fs = std::filesystem;

constexpr const char* kPrepareHint = "`tda data prepare --tokenizer byte --input TEXT --output DIR` makes a dataset";

// SPLIT_NUMBER.bin; llm.c puts a name before it ("edu_fineweb_train_000001.bin"), `tda data prepare` does not.
bool is_shard(std::string_view name, const std::string& split) {
  constexpr std::string_view kExtension = ".bin";
  if (!name.ends_with(kExtension)) return false;
  name.remove_suffix(kExtension.size());
  const size_t number = name.find_last_not_of("0123456789") + 1;
  if (number == name.size()) return false;
  name = name.substr(0, number);
  return name == split + "_" || name.ends_with("_" + split + "_");
}

std::vector<fs::path> find_shards(const fs::path& directory, const std::string& split) {
  std::vector<fs::path> shards;
  for (const auto& entry : fs::directory_iterator(directory)) {
    if (is_shard(entry.path().filename().string(), split)) shards.push_back(entry.path());
  }
  std::ranges::sort(shards);
  return shards;
}

DatasetDescription read_description(const fs::path& path) {
  std::ifstream file(path);
  if (!file) throw Error(fmt::format("cannot read {}", path.string()));
  DatasetDescription description;
  try {
    const auto json = nlohmann::json::parse(file);
    json.at("tokenizer").get_to(description.tokenizer);
    json.at("vocabulary_size").get_to(description.vocabulary_size);
    json.at("end_of_text").get_to(description.end_of_text);
    json.at("train_tokens").get_to(description.train_tokens);
    json.at("val_tokens").get_to(description.validation_tokens);
    json.at("documents").get_to(description.documents);
  } catch (const nlohmann::json::exception& error) {
    throw Error(fmt::format("{} is no description of a dataset: {}", path.string(), error.what()), kPrepareHint);
  }
  if (description.vocabulary_size < 1 || description.vocabulary_size > 65536) {
    throw Error(fmt::format("{}: vocabulary_size is {}, expected 1 to 65536 (tokens are uint16)", path.string(),
                            description.vocabulary_size));
  }
  return description;
}

DatasetDescription description_of_foreign_shards() {
  DatasetDescription description;
  description.tokenizer = "gpt2";
  description.vocabulary_size = 50257;
  description.end_of_text = 50256;
  return description;
}

void expect_count(const fs::path& path, const char* key, int64_t promised, int64_t found) {
  if (promised == found) return;
  throw Error(fmt::format("{}: {} is {}, but the shards beside it hold {} tokens", path.string(), key, promised, found),
              "a shard is missing or left over: prepare the dataset anew in an empty folder");
}

}  // namespace

Dataset::Dataset(const fs::path& directory) : directory_(directory) {
  if (!fs::is_directory(directory)) {
    throw Error(fmt::format("dataset {} is no folder", directory.string()), kPrepareHint);
  }
  const fs::path description_path = directory / "dataset.json";
  const bool described = fs::exists(description_path);
  const auto train_shards = find_shards(directory, "train");
  const auto validation_shards = find_shards(directory, "val");
  if (train_shards.empty()) {
    throw Error(fmt::format("dataset {} has no shard train_*.bin", directory.string()), kPrepareHint);
  }
  description_ = described ? read_description(description_path) : description_of_foreign_shards();
  train_ = std::make_unique<TokenStream>(train_shards, description_.vocabulary_size);
  validation_ = std::make_unique<TokenStream>(validation_shards, description_.vocabulary_size);
  if (described) {
    expect_count(description_path, "train_tokens", description_.train_tokens, train_->size());
    expect_count(description_path, "val_tokens", description_.validation_tokens, validation_->size());
  } else {
    description_.train_tokens = train_->size();
    description_.validation_tokens = validation_->size();
  }
}

std::unique_ptr<Tokenizer> Dataset::tokenizer() const {
  if (fs::exists(directory_ / "tokenizer.json")) return load_tokenizer(directory_);
  return make_tokenizer(description_.tokenizer);
}

}  // namespace tda
