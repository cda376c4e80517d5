#pragma once

#include <memory>
#include <mutex>

#include "lm/data/byte_pair_merge.h"
#include "lm/data/gpt2_pieces.h"
#include "lm/data/gpt2_ranks.h"
#include "lm/data/tokenizer.h"

namespace tda {

class PieceCache;

/// GPT-2's byte-level BPE: 50,256 ranks, end-of-text 50256, padded to 50,304. The same ids as tiktoken for valid
/// Unicode (as far as both know its characters); bytes that are not valid UTF-8 come back exactly as well, see
/// Gpt2Pieces.
class Gpt2Tokenizer final : public Tokenizer {
 public:
  explicit Gpt2Tokenizer(Gpt2Ranks ranks);
  ~Gpt2Tokenizer() override;

  std::vector<int32_t> encode(std::string_view text) const override;
  size_t split_point(std::string_view text) const override { return Gpt2Pieces::split_point(text); }

  std::string name() const override { return "gpt2"; }
  int vocabulary_size() const override { return kGpt2Ranks + 1; }
  int padded_vocabulary_size() const override { return 50304; }
  int end_of_text() const override { return kGpt2Ranks; }

  void save(const std::filesystem::path& directory) const override;

 protected:
  std::string_view token_bytes(int32_t id) const override;

 private:
  // What encoding changes: the matcher's and the merge's buffers, and the tokens of pieces met before.
  struct Workspace;

  void encode_with(Workspace& workspace, std::string_view text, std::vector<int32_t>& ids) const;

  Gpt2Ranks ranks_;
  BytePairMerge::Ranks rank_of_;
  Gpt2Pieces pieces_;
  mutable std::mutex workspace_mutex_;
  std::unique_ptr<Workspace> workspace_;
};

}  // namespace tda
