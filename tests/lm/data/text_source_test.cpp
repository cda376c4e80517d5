#include "lm/data/text_source.h"

#include <gtest/gtest.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#include <random>
#include <string>
#include <vector>

#include "temporary_folder.h"

namespace tda {
namespace {

std::string pack_xz(const std::string& text) {
  std::string packed(lzma_stream_buffer_bound(text.size()), '\0');
  size_t size = 0;
  EXPECT_EQ(lzma_easy_buffer_encode(6, LZMA_CHECK_CRC64, nullptr, reinterpret_cast<const uint8_t*>(text.data()),
                                    text.size(), reinterpret_cast<uint8_t*>(packed.data()), &size, packed.size()),
            LZMA_OK);
  packed.resize(size);
  return packed;
}

std::string pack_gz(const std::string& text) {
  z_stream stream{};
  EXPECT_EQ(deflateInit2(&stream, 6, Z_DEFLATED, MAX_WBITS + 16, 8, Z_DEFAULT_STRATEGY), Z_OK);
  std::string packed(deflateBound(&stream, text.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(text.data()));
  stream.avail_in = static_cast<uInt>(text.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  EXPECT_EQ(deflate(&stream, Z_FINISH), Z_STREAM_END);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

std::string pack_zst(const std::string& text) {
  std::string packed(ZSTD_compressBound(text.size()), '\0');
  packed.resize(ZSTD_compress(packed.data(), packed.size(), text.data(), text.size(), 3));
  return packed;
}

std::string unpack(const std::filesystem::path& path, size_t buffer_size) {
  const auto source = open_text(path);
  std::vector<char> buffer(buffer_size);
  std::string text;
  while (const size_t size = source->read(buffer)) text.append(buffer.data(), size);
  EXPECT_EQ(source->read(buffer), 0U);
  return text;
}

struct Packing {
  std::string extension;
  std::string (*pack)(const std::string&);
};

class PackedText : public testing::TestWithParam<Packing> {
 protected:
  std::string name() const { return "text" + GetParam().extension; }

  static std::string long_text() {
    std::mt19937 random(1);
    std::string text;
    while (text.size() < 700'000) text += static_cast<char>(random() % 4 == 0 ? random() : 'a');
    return text;
  }

  TemporaryFolder folder_;
};

TEST_P(PackedText, ComesBack) {
  const std::string text = long_text();
  const auto path = folder_.write(name(), GetParam().pack(text));
  EXPECT_EQ(unpack(path, 1 << 18), text);
  EXPECT_EQ(unpack(path, 777), text);
}

TEST_P(PackedText, StreamsFollowEachOther) {
  const auto path = folder_.write(name(), GetParam().pack("one ") + GetParam().pack("") + GetParam().pack("two"));
  EXPECT_EQ(unpack(path, 100), "one two");
  EXPECT_EQ(unpack(path, 4), "one two");
}

TEST_P(PackedText, EmptyTextIsEmpty) { EXPECT_EQ(unpack(folder_.write(name(), GetParam().pack("")), 10), ""); }

TEST_P(PackedText, TheContentDecidesNotTheName) {
  EXPECT_EQ(unpack(folder_.write("text.txt", GetParam().pack("hello")), 10), "hello");
}

TEST_P(PackedText, RefusesEveryTruncation) {
  const std::string packed = GetParam().pack("some text that is a little longer than nothing");
  for (size_t size = 0; size < packed.size(); ++size) {
    const auto path = folder_.write(name(), packed.substr(0, size));
    const std::string message = error_of([&] { unpack(path, 4096); });
    EXPECT_EQ(message.rfind(path.string(), 0), 0U) << size << ": " << message;
  }
  const std::string longer = GetParam().pack(long_text());
  error_of([&] { unpack(folder_.write(name(), longer.substr(0, longer.size() / 2)), 4096); });
}

TEST_P(PackedText, SurvivesDamage) {
  std::mt19937 random(2);
  const std::string text = long_text().substr(0, 3000);
  const std::string packed = GetParam().pack(text);
  int refused = 0;
  for (int round = 0; round < 300; ++round) {
    std::string damaged = packed;
    for (int i = 0; i < 3; ++i) damaged[random() % damaged.size()] = static_cast<char>(random());
    const auto path = folder_.write("text" + GetParam().extension, damaged);
    try {
      unpack(path, 1000);
    } catch (const Error&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 100);
}

TEST_P(PackedText, RefusesPlainTextUnderThisName) {
  const auto path = folder_.write(name(), "plain");
  EXPECT_EQ(error_of([&] { open_text(path); }),
            path.string() + " does not begin as a " + GetParam().extension + " file does");
}

INSTANTIATE_TEST_SUITE_P(Formats, PackedText,
                         testing::Values(Packing{".xz", pack_xz}, Packing{".gz", pack_gz}, Packing{".zst", pack_zst}),
                         [](const auto& parameter) { return parameter.param.extension.substr(1); });

TEST(PlainText, IsReadAsItIs) {
  const TemporaryFolder folder;
  for (const std::string text : {"", "a", "1234567", "12345678", "123456789", "a\r\nb\n"}) {
    EXPECT_EQ(unpack(folder.write("text.txt", text), 3), text);
    EXPECT_EQ(unpack(folder.write("no extension", text), 1000), text);
  }
}

TEST(PlainText, RefusesWhatCannotBeRead) {
  const TemporaryFolder folder;
  EXPECT_EQ(error_of([&] { open_text(folder / "missing.txt"); }),
            "cannot read " + (folder / "missing.txt").string() + ": No such file or directory");
  EXPECT_EQ(error_of([&] { open_text(folder.path()); }), "cannot read " + folder.path().string() + ": Is a directory");
}

}  // namespace
}  // namespace tda
