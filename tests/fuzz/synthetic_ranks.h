// Ranks of the size of GPT-2's without its file: every byte, then pairs of bytes, frequent English ones first.
#pragma once

#include <string>

#include "lm/data/gpt2_ranks.h"

namespace tda::fuzz {

inline Gpt2Ranks synthetic_ranks() {
  Gpt2Ranks ranks;
  for (int byte = 0; byte < 256; ++byte) ranks.emplace_back(1, static_cast<char>(byte));
  // 'a' + i and so on wrap around, so that pairs of letters and of UTF-8 bytes come among the first.
  for (int i = 0; ranks.size() < kGpt2Ranks; ++i) {
    ranks.push_back({static_cast<char>('a' + i % 256), static_cast<char>('a' + i / 256)});
  }
  return ranks;
}

// The first `count` of them as a .tiktoken file writes them: base64, blank, rank.
inline std::string tiktoken_lines(int count) {
  static constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  const Gpt2Ranks ranks = synthetic_ranks();
  std::string text;
  for (int rank = 0; rank < count; ++rank) {
    const std::string& bytes = ranks[static_cast<std::size_t>(rank)];
    unsigned bits = 0;
    for (int i = 0; i < 3; ++i) {
      bits = bits << 8 |
             (i < static_cast<int>(bytes.size()) ? static_cast<unsigned char>(bytes[static_cast<std::size_t>(i)]) : 0u);
    }
    const int digits = static_cast<int>(bytes.size()) + 1;
    for (int i = 0; i < 4; ++i) text += i < digits ? kDigits[bits >> (18 - 6 * i) & 63] : '=';
    text += ' ' + std::to_string(rank) + '\n';
  }
  return text;
}

}  // namespace tda::fuzz
