#pragma once

#include <cstddef>
#include <memory>
#include <string_view>

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;

namespace tda {

/// GPT-2's split of text into pieces that no merge crosses: contractions, words, numbers, other signs (each with one
/// blank before it) and white space. Pieces follow each other without gaps.
///
/// The pattern speaks of Unicode characters. Bytes that are not valid UTF-8 end the text before them as its end would,
/// and each run of them is one piece.
class Gpt2Pieces {
 public:
  Gpt2Pieces();

  /// What one thread at a time needs to match.
  using MatchData = std::unique_ptr<pcre2_real_match_data_8, void (*)(pcre2_real_match_data_8*)>;
  MatchData make_match_data() const;

  /// Calls visit(piece) for each piece of `text` in order.
  template <typename Visit>
  void for_each(std::string_view text, MatchData& match_data, Visit&& visit) const {
    while (!text.empty()) {
      const size_t valid = valid_prefix(text);
      const std::string_view characters = text.substr(0, valid);
      for (size_t begin = 0; begin < valid;) {
        const size_t end = piece_end(characters, begin, match_data);
        visit(characters.substr(begin, end - begin));
        begin = end;
      }
      text.remove_prefix(valid);
      const size_t invalid = invalid_prefix(text);
      if (invalid > 0) visit(text.substr(0, invalid));
      text.remove_prefix(invalid);
    }
  }

  /// The last position at which a piece begins whatever follows `text`: white space after another character.
  /// 0 when there is none.
  static size_t split_point(std::string_view text);

 private:
  static size_t valid_prefix(std::string_view text);
  static size_t invalid_prefix(std::string_view text);
  size_t piece_end(std::string_view characters, size_t begin, MatchData& match_data) const;

  std::unique_ptr<pcre2_real_code_8, void (*)(pcre2_real_code_8*)> pattern_;
};

}  // namespace tda
