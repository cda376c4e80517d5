#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <span>
#include <string>

#include "lm/data/token_shard.h"

namespace tda {

/// Writes the tokens of one split into shards SPLIT_000000.bin, SPLIT_000001.bin … of at most `shard_tokens` tokens.
/// A split without tokens leaves no file.
class SplitWriter {
 public:
  SplitWriter(std::filesystem::path directory, std::string split, int64_t shard_tokens);

  /// Throws Error naming the file when the disk is full.
  void append(std::span<const int32_t> ids);
  /// Completes the last shard.
  void close();
  int64_t count() const { return count_; }

 private:
  std::filesystem::path directory_;
  std::string split_;
  int64_t shard_tokens_;
  std::optional<TokenShardWriter> shard_;
  int shards_ = 0;
  int64_t count_ = 0;
};

}  // namespace tda
