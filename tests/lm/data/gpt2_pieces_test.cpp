#include "lm/data/gpt2_pieces.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

namespace tda {
namespace {

using Pieces = std::vector<std::string>;

Pieces pieces_of(std::string_view text) {
  static const Gpt2Pieces splitter;
  static Gpt2Pieces::MatchData match_data = splitter.make_match_data();
  Pieces pieces;
  splitter.for_each(text, match_data, [&](std::string_view piece) { pieces.emplace_back(piece); });
  return pieces;
}

TEST(Gpt2Pieces, WordsNumbersSigns) {
  EXPECT_EQ(pieces_of("Hello world, it's 42!"), (Pieces{"Hello", " world", ",", " it", "'s", " 42", "!"}));
  EXPECT_EQ(pieces_of("I'll we've they're don't I'd I'm"),
            (Pieces{"I", "'ll", " we", "'ve", " they", "'re", " don", "'t", " I", "'d", " I", "'m"}));
  EXPECT_EQ(pieces_of("'S'x a1b2"), (Pieces{"'", "S", "'", "x", " a", "1", "b", "2"}));
  EXPECT_EQ(pieces_of(""), Pieces{});
}

TEST(Gpt2Pieces, WhiteSpaceLeavesItsLastBlankToTheNextWord) {
  EXPECT_EQ(pieces_of("a   b"), (Pieces{"a", "  ", " b"}));
  EXPECT_EQ(pieces_of("a\n\nb"), (Pieces{"a", "\n", "\n", "b"}));
  EXPECT_EQ(pieces_of("a \n b  "), (Pieces{"a", " \n", " b", "  "}));
  EXPECT_EQ(pieces_of("a\r\n"), (Pieces{"a", "\r\n"}));
}

TEST(Gpt2Pieces, UnicodeClasses) {
  EXPECT_EQ(pieces_of("Ünïcode αβγ 你好 ١٢½"), (Pieces{"Ünïcode", " αβγ", " 你好", " ١٢½"}));
  EXPECT_EQ(pieces_of("🙂🙂 a"), (Pieces{"🙂🙂", " a"}));
  // A combining mark is no letter: decomposed text is cut there.
  EXPECT_EQ(pieces_of("e\u0301a"), (Pieces{"e", "\u0301", "a"}));
  // U+00A0 and U+3000 are white space, U+180E and U+200B are not.
  EXPECT_EQ(pieces_of("a\u00a0\u3000b"), (Pieces{"a", "\u00a0", "\u3000", "b"}));
  EXPECT_EQ(pieces_of("a\u180e\u200bb"), (Pieces{"a", "\u180e\u200b", "b"}));
}

TEST(Gpt2Pieces, InvalidBytesAreRunsOfTheirOwn) {
  EXPECT_EQ(pieces_of("ab\xff\xfe\xfd c"), (Pieces{"ab", "\xff\xfe\xfd", " c"}));
  EXPECT_EQ(pieces_of("a  \x80z"), (Pieces{"a", "  ", "\x80", "z"}));
  // Overlong, surrogate, beyond U+10FFFF, cut off.
  EXPECT_EQ(pieces_of("\xc0\xaf"), Pieces{"\xc0\xaf"});
  EXPECT_EQ(pieces_of("\xed\xa0\x80"), Pieces{"\xed\xa0\x80"});
  EXPECT_EQ(pieces_of("\xf4\x90\x80\x80"), Pieces{"\xf4\x90\x80\x80"});
  EXPECT_EQ(pieces_of("x\xe4\xbd"), (Pieces{"x", "\xe4\xbd"}));
}

std::string random_text(std::mt19937& random, size_t parts) {
  static const std::vector<std::string> kParts = {"a",      "B", "'",  "s",      "ll",   " ",    "  ",   "\n",
                                                  "\t",     "1", "é",  "你",     "🙂", "\xff", "\xe4", "\u00a0",
                                                  "\u3000", ".", "\r", "\u2009", "\x80", "-",    "ve",   "\x1f"};
  std::string text;
  for (size_t i = 0; i < parts; ++i) text += kParts[random() % kParts.size()];
  return text;
}

TEST(Gpt2Pieces, NothingIsLost) {
  std::mt19937 random(5);
  for (int round = 0; round < 2000; ++round) {
    std::string text = random_text(random, random() % 40);
    if (round % 2 == 1) {
      for (char& byte : text) {
        if (random() % 4 == 0) byte = static_cast<char>(random());
      }
    }
    std::string joined;
    for (const std::string& piece : pieces_of(text)) {
      ASSERT_FALSE(piece.empty());
      joined += piece;
    }
    ASSERT_EQ(joined, text);
  }
}

TEST(Gpt2Pieces, SplitPointHoldsWhateverFollows) {
  std::mt19937 random(6);
  int split = 0;
  for (int round = 0; round < 3000; ++round) {
    const std::string text = random_text(random, 1 + random() % 15);
    const size_t point = Gpt2Pieces::split_point(text);
    ASSERT_LE(point, text.size());
    if (point == 0) continue;
    ++split;
    const std::string rest = random_text(random, random() % 5);
    Pieces expected = pieces_of(text.substr(0, point));
    for (const std::string& piece : pieces_of(text.substr(point) + rest)) expected.push_back(piece);
    ASSERT_EQ(pieces_of(text + rest), expected) << text << "|" << rest;
  }
  EXPECT_GT(split, 1000);
}

}  // namespace
}  // namespace tda
