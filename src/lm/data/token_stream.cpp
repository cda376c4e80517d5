#include "lm/data/token_stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "lm/error.h"

namespace tda {

TokenStream::TokenStream(const std::vector<std::filesystem::path>& shards, int vocabulary_size)
    : first_{0}, vocabulary_size_(vocabulary_size) {
  shards_.reserve(shards.size());
  for (const auto& path : shards) {
    shards_.emplace_back(path);
    first_.push_back(first_.back() + static_cast<int64_t>(shards_.back().tokens().size()));
  }
  if (size() > kEagerCheckTokens) return;
  for (size_t shard = 0; shard < shards_.size(); ++shard) {
    const auto tokens = shards_[shard].tokens();
    const auto largest = std::ranges::max_element(tokens);
    if (largest != tokens.end() && *largest >= vocabulary_size_) refuse(shard, largest - tokens.begin());
  }
}

void TokenStream::copy(int64_t first, int64_t count, int64_t* out) const {
  if (first < 0 || count < 0 || count > size() - first) {
    throw std::out_of_range(fmt::format("tokens [{}, {}) of a stream of {}", first, first + count, size()));
  }
  // The last shard that begins at or before `first`; shards without tokens are passed over.
  size_t shard = static_cast<size_t>(std::ranges::upper_bound(first_, first) - first_.begin()) - 1;
  while (count > 0) {
    const int64_t here = std::min(count, first_[shard + 1] - first);
    copy_from_shard(shard, first - first_[shard], here, out);
    first += here;
    out += here;
    count -= here;
    ++shard;
  }
}

void TokenStream::copy_from_shard(size_t shard, int64_t first, int64_t count, int64_t* out) const {
  const auto tokens = shards_[shard].tokens();
  for (int64_t i = 0; i < count; ++i) {
    const uint16_t id = tokens[static_cast<size_t>(first + i)];
    if (id >= vocabulary_size_) refuse(shard, first + i);
    out[i] = id;
  }
}

void TokenStream::refuse(size_t shard, int64_t position) const {
  throw Error(fmt::format("{}: token {} has id {}, expected less than {}", shards_[shard].path().string(), position,
                          shards_[shard].tokens()[static_cast<size_t>(position)], vocabulary_size_),
              "the shard is damaged or was made with another tokenizer than dataset.json says");
}

}  // namespace tda
