#include "lm/analysis/example_sentence.h"

#include <fmt/format.h>

#include "lm/utf8.h"

namespace tda {
namespace {

bool is_capital(char c) { return c >= 'A' && c <= 'Z'; }
bool ends_sentence(char c) { return c == '.' || c == '?' || c == '!'; }
bool is_space(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

constexpr std::size_t kShortest = 24;

// The length of the sentence that starts at `begin`, 0 when it is too short, too long or broken over lines.
std::size_t sentence_length(std::string_view text, std::size_t begin, std::size_t longest) {
  for (std::size_t end = begin; end < text.size() && end - begin < longest; ++end) {
    if (text[end] == '\n') return 0;
    if (ends_sentence(text[end])) {
      const std::size_t length = end + 1 - begin;
      const bool whole = end + 1 == text.size() || is_space(text[end + 1]);
      return whole && length >= kShortest ? length : 0;
    }
  }
  return 0;
}

}  // namespace

std::string find_sentence(std::string_view text, std::size_t longest) {
  for (std::size_t begin = 0; begin < text.size(); ++begin) {
    // A capital after a space may be a name in mid-sentence; after a line break or a full stop it is a beginning.
    const bool starts = begin == 0 || text[begin - 1] == '\n' ||
                        (begin > 1 && text[begin - 1] == ' ' && ends_sentence(text[begin - 2]));
    if (!starts || !is_capital(text[begin])) continue;
    const std::size_t length = sentence_length(text, begin, longest);
    if (length != 0) return std::string(text.substr(begin, length));
  }
  return std::string(text.substr(0, longest));
}

std::vector<std::string> token_labels(const Tokenizer& tokenizer, std::span<const std::int32_t> ids) {
  std::vector<std::string> labels;
  for (const std::int32_t id : ids) {
    std::string label = tokenizer.decode({id});
    if (!is_utf8(label)) {
      std::string hexadecimal;
      for (const char byte : label) hexadecimal += fmt::format("{:02X}", static_cast<unsigned char>(byte));
      label = "<" + hexadecimal + ">";
    }
    labels.push_back(std::move(label));
  }
  return labels;
}

}  // namespace tda
