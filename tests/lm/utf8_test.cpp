#include "lm/utf8.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <string>

namespace tda {
namespace {

// The encoding of a code point as RFC 3629 lays out its bits, whether or not it may be encoded.
std::string encoded(std::uint32_t point) {
  const auto tail = [&](int shift) { return static_cast<char>(0x80 | (point >> shift & 0x3F)); };
  if (point < 0x80) return {static_cast<char>(point)};
  if (point < 0x800) return {static_cast<char>(0xC0 | point >> 6), tail(0)};
  if (point < 0x10000) return {static_cast<char>(0xE0 | point >> 12), tail(6), tail(0)};
  return {static_cast<char>(0xF0 | point >> 18), tail(12), tail(6), tail(0)};
}

TEST(Utf8, EveryCodePointButSurrogatesAndNothingBeyondTheLast) {
  for (std::uint32_t point = 0; point < 0x120000; ++point) {
    const bool allowed = point <= 0x10FFFF && (point < 0xD800 || point > 0xDFFF);
    ASSERT_EQ(is_utf8("a" + encoded(point) + "b"), allowed) << point;
  }
}

TEST(Utf8, PartsOfCharactersAreNone) {
  for (const std::uint32_t point : {0xE4U, 0x2603U, 0x1F600U}) {
    const std::string whole = encoded(point);
    for (std::size_t size = 1; size < whole.size(); ++size) {
      EXPECT_FALSE(is_utf8(whole.substr(0, size))) << point;
      EXPECT_FALSE(is_utf8(whole.substr(0, size) + "a")) << point;
      EXPECT_FALSE(is_utf8(whole.substr(size))) << point;
    }
  }
}

TEST(Utf8, LongerFormsThanNeededAreNone) {
  for (const char* text : {"\xC0\x80", "\xC1\xBF", "\xE0\x9F\xBF", "\xF0\x8F\xBF\xBF"}) EXPECT_FALSE(is_utf8(text));
}

TEST(Utf8, PrintableTextIsOneLineOfUtf8) {
  EXPECT_EQ(printable(""), "");
  EXPECT_EQ(printable("a\xC3\xA4 \xE2\x98\x83"), "a\xC3\xA4 \xE2\x98\x83");
  EXPECT_EQ(printable("a\xFF\n\x7F\xC3"), "a\\xFF\\x0A\\x7F\\xC3");
  EXPECT_EQ(printable(std::string(1, '\0')), "\\x00");
}

}  // namespace
}  // namespace tda
