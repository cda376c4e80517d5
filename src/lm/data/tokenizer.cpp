#include "lm/data/tokenizer.h"

#include <fmt/format.h>

#include "lm/data/byte_tokenizer.h"
#include "lm/data/gpt2_tokenizer.h"
#include "lm/data/tokenizer_files.h"
#include "lm/error.h"

namespace tda {

std::string Tokenizer::decode(std::span<const int32_t> ids) const {
  std::string text;
  for (const int32_t id : ids) {
    if (id < 0 || id >= vocabulary_size()) {
      throw Error(fmt::format("token id {} is out of range: the {} tokenizer has ids 0 to {}", id, name(),
                              vocabulary_size() - 1));
    }
    if (id == end_of_text()) {
      text += kEndOfText;
    } else {
      text += token_bytes(id);
    }
  }
  return text;
}

std::unique_ptr<Tokenizer> make_tokenizer(const std::string& name,
                                          const std::optional<std::filesystem::path>& vocabulary) {
  if (name == "byte") return std::make_unique<ByteTokenizer>();
  if (name == "gpt2") return std::make_unique<Gpt2Tokenizer>(read_gpt2_ranks(find_gpt2_ranks(vocabulary)));
  throw Error(fmt::format("unknown tokenizer '{}': expected byte or gpt2", name));
}

std::unique_ptr<Tokenizer> load_tokenizer(const std::filesystem::path& directory) {
  const std::string type = read_tokenizer_type(directory);
  if (type == "gpt2") return make_tokenizer(type, directory / kGpt2RankFile);
  return make_tokenizer(type);
}

}  // namespace tda
