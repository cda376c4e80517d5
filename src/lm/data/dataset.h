#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>

#include "lm/data/token_stream.h"
#include "lm/data/tokenizer.h"

namespace tda {

/// What `dataset.json` says about a prepared folder.
struct DatasetDescription {
  std::string tokenizer;     // "byte" or "gpt2"
  int vocabulary_size = 0;   // ids that can occur
  int end_of_text = 0;       // stands before each document
  int64_t train_tokens = 0;  // end-of-text included
  int64_t validation_tokens = 0;
  int64_t documents = 0;  // of both splits
};

/// A folder of token shards: `train_000000.bin …`, `val_000000.bin …`, `dataset.json` and the tokenizer's files, as
/// `tda data prepare` writes it. A folder of llm.c without dataset.json (`NAME_train_000001.bin`,
/// `NAME_val_000000.bin`) works as well and is taken for gpt2.
class Dataset {
 public:
  /// Throws Error naming the file for whatever is missing, damaged or contradictory.
  explicit Dataset(const std::filesystem::path& directory);

  const DatasetDescription& description() const { return description_; }
  const TokenStream& train() const { return *train_; }
  /// Empty (size 0) when the folder has no validation shards.
  const TokenStream& validation() const { return *validation_; }
  /// The tokenizer saved in the folder, else the one that make_tokenizer() finds.
  std::unique_ptr<Tokenizer> tokenizer() const;
  const std::filesystem::path& directory() const { return directory_; }

 private:
  std::filesystem::path directory_;
  DatasetDescription description_;
  std::unique_ptr<TokenStream> train_;
  std::unique_ptr<TokenStream> validation_;
};

}  // namespace tda
