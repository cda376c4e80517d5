#include "lm/data/split_writer.h"

#include <fmt/format.h>

#include <algorithm>
#include <utility>

namespace tda {

SplitWriter::SplitWriter(std::filesystem::path directory, std::string split, int64_t shard_tokens)
    : directory_(std::move(directory)), split_(std::move(split)), shard_tokens_(shard_tokens) {}

void SplitWriter::append(std::span<const int32_t> ids) {
  while (!ids.empty()) {
    if (shard_ && shard_->count() == shard_tokens_) close();
    if (!shard_) shard_.emplace(directory_ / fmt::format("{}_{:06}.bin", split_, shards_++));
    const size_t room = static_cast<size_t>(shard_tokens_ - shard_->count());
    const auto part = ids.first(std::min(room, ids.size()));
    shard_->append(part);
    count_ += static_cast<int64_t>(part.size());
    ids = ids.subspan(part.size());
  }
}

void SplitWriter::close() {
  if (shard_) shard_->close();
  shard_.reset();
}

}  // namespace tda
