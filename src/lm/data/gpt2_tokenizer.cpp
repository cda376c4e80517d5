#include "lm/data/gpt2_tokenizer.h"

#include <span>
#include <utility>

#include "lm/data/piece_cache.h"
#include "lm/data/tokenizer_files.h"

namespace tda {

struct Gpt2Tokenizer::Workspace {
  explicit Workspace(const Gpt2Tokenizer& tokenizer)
      : match_data(tokenizer.pieces_.make_match_data()), merge(tokenizer.rank_of_) {}

  Gpt2Pieces::MatchData match_data;
  BytePairMerge merge;
  PieceCache cache;
};

Gpt2Tokenizer::Gpt2Tokenizer(Gpt2Ranks ranks) : ranks_(std::move(ranks)) {
  rank_of_.reserve(ranks_.size());
  for (size_t rank = 0; rank < ranks_.size(); ++rank) rank_of_.emplace(ranks_[rank], static_cast<int32_t>(rank));
  workspace_ = std::make_unique<Workspace>(*this);
}

Gpt2Tokenizer::~Gpt2Tokenizer() = default;

std::vector<int32_t> Gpt2Tokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  ids.reserve(text.size() / 4 + 8);
  // A second thread at the same time works without what the first has learned rather than waiting for it.
  const std::unique_lock lock(workspace_mutex_, std::try_to_lock);
  if (lock.owns_lock()) {
    encode_with(*workspace_, text, ids);
  } else {
    Workspace own(*this);
    encode_with(own, text, ids);
  }
  return ids;
}

void Gpt2Tokenizer::encode_with(Workspace& workspace, std::string_view text, std::vector<int32_t>& ids) const {
  pieces_.for_each(text, workspace.match_data, [&](std::string_view piece) {
    if (workspace.cache.append(piece, ids)) return;
    const size_t before = ids.size();
    // A piece that is a token is that token, without merging (as in tiktoken).
    const auto whole = rank_of_.find(piece);
    if (whole != rank_of_.end()) {
      ids.push_back(whole->second);
    } else {
      workspace.merge(piece, ids);
    }
    workspace.cache.insert(piece, std::span(ids).subspan(before));
  });
}

void Gpt2Tokenizer::save(const std::filesystem::path& directory) const {
  write_gpt2_ranks(directory / kGpt2RankFile, ranks_);
  write_tokenizer_description(directory, *this);
}

std::string_view Gpt2Tokenizer::token_bytes(int32_t id) const { return ranks_[static_cast<size_t>(id)]; }

}  // namespace tda
