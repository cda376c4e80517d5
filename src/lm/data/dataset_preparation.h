#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "lm/data/dataset.h"
#include "lm/data/token_shard.h"

namespace tda {

struct DatasetPreparation {
  std::string tokenizer;                            // "byte" or "gpt2"
  std::optional<std::filesystem::path> vocabulary;  // ranks of gpt2, see make_tokenizer()
  std::vector<std::filesystem::path> inputs;        // text, see open_text(); the end of a file ends a document
  std::vector<std::filesystem::path> validation;    // held-out text of its own
  /// Share of the text of `inputs`, in bytes, that is held out instead, in (0, 1); 0 for none. It is the end of the
  /// text: from the first document that begins in that share, so that the same text is held out whatever the tokenizer.
  /// When none begins there, the last document is divided at the first line that does.
  double validation_fraction = 0;
  std::filesystem::path output;
  int64_t shard_tokens = kMaximumShardTokens;
};

struct PreparationProgress {
  int64_t text_bytes = 0;
  int64_t tokens = 0;
  int64_t documents = 0;
};

/// Tokenizes text into the folder `output`: shards, `dataset.json`, the tokenizer's files (see Dataset). The folder
/// appears whole at the end or, whatever happens, not at all; memory does not grow with the text. `report` is called
/// now and then; an exception that it throws ends the work. Throws Error for text that is missing, damaged or empty, an
/// output that is not empty, a full disk.
DatasetDescription prepare_dataset(const DatasetPreparation& preparation,
                                   const std::function<void(const PreparationProgress&)>& report);

}  // namespace tda
