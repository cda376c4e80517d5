#pragma once

#include "lm/data/tokenizer.h"

namespace tda {

/// The id of a byte is its value; end-of-text is 256; the vocabulary is padded to 320.
class ByteTokenizer final : public Tokenizer {
 public:
  std::vector<int32_t> encode(std::string_view text) const override;
  size_t split_point(std::string_view text) const override { return text.size(); }

  std::string name() const override { return "byte"; }
  int vocabulary_size() const override { return 257; }
  int padded_vocabulary_size() const override { return 320; }
  int end_of_text() const override { return 256; }

  void save(const std::filesystem::path& directory) const override;

 protected:
  std::string_view token_bytes(int32_t id) const override;
};

}  // namespace tda
