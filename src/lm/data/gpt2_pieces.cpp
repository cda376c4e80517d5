#include "lm/data/gpt2_pieces.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <stdexcept>

namespace tda {
namespace {

// White space is spelled out as Unicode's White_Space property, which tiktoken's engine means by \s; PCRE2's \s has
// U+180E besides. The possessive quantifiers only spare the matcher from remembering ways back that can never succeed.
#define TDA_WHITE_SPACE R"(\x09-\x0d\x20\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})"
constexpr const char* kPattern = R"('(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^)" TDA_WHITE_SPACE R"(\p{L}\p{N}]++)"
                                 "|[" TDA_WHITE_SPACE "]+(?![^" TDA_WHITE_SPACE "])|[" TDA_WHITE_SPACE "]";
#undef TDA_WHITE_SPACE

bool is_continuation(char byte) { return (static_cast<unsigned char>(byte) & 0xc0) == 0x80; }

// Length in bytes of the character at the start of `text`, 0 when no valid one stands there (Unicode 15, table 3-7).
size_t character_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned lead = byte(0);
  if (lead < 0x80) return 1;
  const size_t length = lead < 0xc2 ? 0 : lead < 0xe0 ? 2 : lead < 0xf0 ? 3 : lead < 0xf5 ? 4 : 0;
  if (length == 0 || text.size() < length) return 0;
  const unsigned low = lead == 0xe0 ? 0xa0 : lead == 0xf0 ? 0x90 : 0x80;
  const unsigned high = lead == 0xed ? 0x9f : lead == 0xf4 ? 0x8f : 0xbf;
  if (byte(1) < low || byte(1) > high) return 0;
  for (size_t i = 2; i < length; ++i) {
    if (!is_continuation(text[i])) return 0;
  }
  return length;
}

bool is_white_space(std::string_view character) {
  if (character.size() == 1) return character[0] == ' ' || (character[0] >= '\t' && character[0] <= '\r');
  static constexpr std::array<std::string_view, 8> kOthers = {"\u0085", "\u00a0", "\u1680", "\u2028",
                                                              "\u2029", "\u202f", "\u205f", "\u3000"};
  return std::ranges::find(kOthers, character) != kOthers.end() || (character >= "\u2000" && character <= "\u200a");
}

}  // namespace

Gpt2Pieces::Gpt2Pieces() : pattern_(nullptr, pcre2_code_free_8) {
  int error = 0;
  PCRE2_SIZE offset = 0;
  pattern_.reset(pcre2_compile_8(reinterpret_cast<PCRE2_SPTR8>(kPattern), PCRE2_ZERO_TERMINATED,
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_ANCHORED, &error, &offset, nullptr));
  if (!pattern_) throw std::runtime_error(fmt::format("PCRE2 refuses GPT-2's pattern: error {} at {}", error, offset));
  // Where the library has no just-in-time compiler, matching is slower and otherwise the same.
  pcre2_jit_compile_8(pattern_.get(), PCRE2_JIT_COMPLETE);
}

Gpt2Pieces::MatchData Gpt2Pieces::make_match_data() const {
  return {pcre2_match_data_create_8(1, nullptr), pcre2_match_data_free_8};
}

size_t Gpt2Pieces::piece_end(std::string_view characters, size_t begin, MatchData& match_data) const {
  const int matches = pcre2_match_8(pattern_.get(), reinterpret_cast<PCRE2_SPTR8>(characters.data()), characters.size(),
                                    begin, PCRE2_NO_UTF_CHECK, match_data.get(), nullptr);
  if (matches < 1) throw std::runtime_error(fmt::format("PCRE2 cannot match GPT-2's pattern: error {}", matches));
  return pcre2_get_ovector_pointer_8(match_data.get())[1];
}

size_t Gpt2Pieces::valid_prefix(std::string_view text) {
  size_t position = 0;
  while (position < text.size()) {
    uint64_t block = 0;
    if (text.size() - position >= sizeof(block)) {
      std::memcpy(&block, text.data() + position, sizeof(block));
      if ((block & 0x8080808080808080) == 0) {
        position += sizeof(block);
        continue;
      }
    }
    const size_t length = character_length(text.substr(position));
    if (length == 0) break;
    position += length;
  }
  return position;
}

size_t Gpt2Pieces::invalid_prefix(std::string_view text) {
  size_t position = 0;
  while (position < text.size() && character_length(text.substr(position)) == 0) ++position;
  return position;
}

size_t Gpt2Pieces::split_point(std::string_view text) {
  for (size_t position = text.size(); position-- > 1;) {
    if (text[position] != ' ' && text[position] != '\n') continue;
    size_t before = position - 1;
    while (before > 0 && position - before < 4 && is_continuation(text[before])) --before;
    const std::string_view character = text.substr(before, position - before);
    if (character_length(character) == character.size() && !is_white_space(character)) return position;
  }
  return 0;
}

}  // namespace tda
