#include "lm/analysis/example_sentence.h"

#include <gtest/gtest.h>

#include <string>

#include "lm/analysis/reference_compression.h"
#include "lm/data/tokenizer.h"

namespace tda {
namespace {

TEST(ExampleSentence, TakesTheFirstWholeSentence) {
  EXPECT_EQ(find_sentence("and so it ended. Too short. He went up to the mountain again. And then?"),
            "He went up to the mountain again.");
  EXPECT_EQ(find_sentence("tail of a line\nAnd the earth was without form; void.\n"),
            "And the earth was without form; void.");
}

TEST(ExampleSentence, PassesOverWhatIsTooLongOrBroken) {
  const std::string text =
      "A sentence that goes on for longer than the sixty bytes which fit into a picture. "
      "A line that\nbreaks in the middle. Here is one that fits quite well.";
  EXPECT_EQ(find_sentence(text), "Here is one that fits quite well.");
}

TEST(ExampleSentence, FallsBackToTheBeginning) {
  EXPECT_EQ(find_sentence("no sentence here at all", 11), "no sentence");
  EXPECT_EQ(find_sentence(""), "");
}

TEST(ExampleSentence, LabelsOfTokens) {
  const auto tokenizer = make_tokenizer("byte");
  const auto ids = tokenizer->encode("a \xC3\xA9");
  EXPECT_EQ(token_labels(*tokenizer, ids), (std::vector<std::string>{"a", " ", "<C3>", "<A9>"}));
}

TEST(ReferenceCompression, BitsPerByte) {
  EXPECT_FALSE(xz_bits_per_byte(""));
  // Container and one block: 68 bytes for 100,000 equal ones would be 0.0054; random bytes do not shrink.
  EXPECT_LT(xz_bits_per_byte(std::string(100'000, 'a')).value(), 0.02);
  std::string noise;
  std::uint32_t state = 1;
  for (int i = 0; i < 100'000; ++i) {
    state = 1664525 * state + 1013904223;
    noise += static_cast<char>(state >> 24);
  }
  EXPECT_GT(xz_bits_per_byte(noise).value(), 7.9);
}

}  // namespace
}  // namespace tda
