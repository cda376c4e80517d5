#pragma once

#include <cstdint>
#include <filesystem>
#include <vector>

#include "lm/data/token_shard.h"

namespace tda {

/// The tokens of one split: its shards one after the other. Read piece by piece, so of any size.
class TokenStream {
 public:
  /// `shards` in their order. Throws Error naming the file for a damaged shard, and for an id outside
  /// [0, vocabulary_size): at once when the stream is small (kEagerCheckTokens), else when the id is read.
  TokenStream(const std::vector<std::filesystem::path>& shards, int vocabulary_size);

  int64_t size() const { return first_.back(); }

  /// Copies tokens [first, first + count) to `out`. Throws Error naming the shard and position for an id outside the
  /// vocabulary, and naming the shard when it was written to after it was opened.
  void copy(int64_t first, int64_t count, int64_t* out) const;

  /// Streams up to this size are checked whole when opened (half a gigabyte, a fraction of a second).
  static constexpr int64_t kEagerCheckTokens = int64_t{1} << 28;

 private:
  void copy_from_shard(size_t shard, int64_t first, int64_t count, int64_t* out) const;

  std::vector<TokenShard> shards_;
  std::vector<int64_t> first_;  // shards + 1: position of each shard's first token, then the size
  int vocabulary_size_;
};

}  // namespace tda
