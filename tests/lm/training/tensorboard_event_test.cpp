#include "lm/training/tensorboard_event.h"

#include <gtest/gtest.h>

#include <string>

#include "lm/training/crc32c.h"

namespace tda {
namespace {

// Examples of RFC 3720, appendix B.4, and the check value of the CRC catalogues.
TEST(Crc32c, KnownValues) {
  EXPECT_EQ(crc32c(""), 0x00000000u);
  EXPECT_EQ(crc32c("123456789"), 0xE3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8A9136AAu);
  EXPECT_EQ(crc32c(std::string(32, '\xFF')), 0x62A8AB43u);
  std::string rising;
  for (char c = 0; c < 32; ++c) rising += c;
  EXPECT_EQ(crc32c(rising), 0x46DD794Eu);
}

TEST(TensorBoardEvent, BytesOfAScalar) {
  using std::string_literals::operator""s;
  // wall_time 1.0, step 300 (two bytes as a varint), summary { value { tag: "a" simple_value: 1.0 } }
  const std::string value = "\x0A\x01"s + "a" + "\x15\x00\x00\x80\x3F"s;
  const std::string expected =
      "\x09\x00\x00\x00\x00\x00\x00\xF0\x3F"s + "\x10\xAC\x02"s + "\x2A\x0A"s + "\x0A\x08"s + value;
  EXPECT_EQ(scalars_event(1.0, 300, {{"a", 1.0}}), expected);
}

TEST(TensorBoardEvent, RecordHasLengthAndBothChecksums) {
  const std::string record = tfrecord("abc");
  ASSERT_EQ(record.size(), 8u + 4u + 3u + 4u);
  EXPECT_EQ(record.substr(0, 8), std::string("\3\0\0\0\0\0\0\0", 8));
  EXPECT_EQ(record.substr(12, 3), "abc");
}

}  // namespace
}  // namespace tda
