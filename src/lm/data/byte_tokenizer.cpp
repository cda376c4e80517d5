#include "lm/data/byte_tokenizer.h"

#include <array>

#include "lm/data/tokenizer_files.h"

namespace tda {

std::vector<int32_t> ByteTokenizer::encode(std::string_view text) const {
  std::vector<int32_t> ids;
  ids.reserve(text.size());
  for (const char byte : text) ids.push_back(static_cast<unsigned char>(byte));
  return ids;
}

void ByteTokenizer::save(const std::filesystem::path& directory) const {
  write_tokenizer_description(directory, *this);
}

std::string_view ByteTokenizer::token_bytes(int32_t id) const {
  static constexpr auto kBytes = [] {
    std::array<char, 256> bytes{};
    for (int i = 0; i < 256; ++i) bytes[static_cast<size_t>(i)] = static_cast<char>(i);
    return bytes;
  }();
  return {&kBytes[static_cast<size_t>(id)], 1};
}

}  // namespace tda
