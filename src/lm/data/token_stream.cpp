#include "lm/data/token_stream.h"

#include <fmt/format.h>

#include <algorithm>
#include <stdexcept>

#include "lm/error.h"

namespace tda {
namespace {

constexpr int64_t kCheckedAtOnce = int64_t{1} << 18;

}  // namespace

TokenStream::TokenStream(const std::vector<std::filesystem::path>& shards, int vocabulary_size)
    : first_{0}, vocabulary_size_(vocabulary_size) {
  shards_.reserve(shards.size());
  for (const auto& path : shards) {
    shards_.emplace_back(path);
    first_.push_back(first_.back() + shards_.back().size());
  }
  if (size() > kEagerCheckTokens) return;
  std::vector<int64_t> ids(static_cast<size_t>(std::min(kCheckedAtOnce, size())));
  for (int64_t first = 0; first < size(); first += kCheckedAtOnce) {
    copy(first, std::min(kCheckedAtOnce, size() - first), ids.data());
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
  std::vector<uint16_t> tokens(static_cast<size_t>(count));
  shards_[shard].read(first, tokens);
  for (size_t i = 0; i < tokens.size(); ++i) {
    if (tokens[i] >= vocabulary_size_) {
      throw Error(fmt::format("{}: token {} has id {}, expected less than {}", shards_[shard].path().string(),
                              first + static_cast<int64_t>(i), tokens[i], vocabulary_size_),
                  "the shard is damaged or was made with another tokenizer than dataset.json says");
    }
    out[i] = tokens[i];
  }
}

}  // namespace tda
