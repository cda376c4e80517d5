#include "lm/data/token_shard.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "lm/data/token_stream.h"
#include "temporary_folder.h"

namespace tda {
namespace {

class TokenShardTest : public testing::Test {
 protected:
  std::filesystem::path write_shard(const std::string& name, const std::vector<int32_t>& ids) const {
    TokenShardWriter writer(folder_ / name);
    writer.append(ids);
    writer.close();
    return folder_ / name;
  }
  // A shard of three tokens with one int32 of its header replaced.
  std::string with_header(size_t field, int32_t value) const {
    std::string bytes = content_of(write_shard("whole.bin", {1, 2, 3}));
    std::memcpy(bytes.data() + 4 * field, &value, 4);
    return bytes;
  }
  std::string error_for(const std::string& bytes) const {
    const auto path = folder_.write("damaged.bin", bytes);
    std::string message = error_of([&] { TokenShard shard(path); });
    EXPECT_NE(message.find(path.string()), std::string::npos) << message;
    return message;
  }

  TemporaryFolder folder_;
};

TEST_F(TokenShardTest, BytesAreThoseOfTheFormat) {
  const std::string bytes = content_of(write_shard("a.bin", {1, 258, 65535}));
  ASSERT_EQ(bytes.size(), 1024U + 6U);
  const std::string beginning("\x88\xd8\x34\x01\x01\0\0\0\x03\0\0\0\0", 13);
  EXPECT_EQ(bytes.substr(0, 13), beginning);
  EXPECT_EQ(bytes.substr(1024), std::string("\x01\0\x02\x01\xff\xff", 6));
}

TEST_F(TokenShardTest, ReadsWhatItWrote) {
  const TokenShard shard(write_shard("a.bin", {0, 7, 65535}));
  ASSERT_EQ(shard.size(), 3);
  std::vector<uint16_t> tokens(3);
  shard.read(0, tokens);
  EXPECT_EQ(tokens, (std::vector<uint16_t>{0, 7, 65535}));
  shard.read(2, std::span(tokens).first(1));
  EXPECT_EQ(tokens.front(), 65535);
}

TEST_F(TokenShardTest, RefusesToReadWhatWasWrittenToAfterItWasOpened) {
  const auto path = write_shard("a.bin", {1, 2, 3});
  const auto error_of_read = [&](const std::function<void()>& change) {
    write_shard("a.bin", {1, 2, 3});
    const TokenShard shard(path);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));  // time stamps of files have the grain of a tick
    change();
    uint16_t token[1];
    return error_of([&] { shard.read(0, token); });
  };
  const std::string truncated = error_of_read([&] { std::filesystem::resize_file(path, 1025); });
  EXPECT_EQ(truncated, path.string() + ": the file had 1030 bytes when it was opened and has 1025 now");
  const std::string emptied = error_of_read([&] { std::filesystem::resize_file(path, 0); });
  EXPECT_EQ(emptied, path.string() + ": the file had 1030 bytes when it was opened and has 0 now");
  // Token 0 keeps its value: that the file is another one is what counts.
  const std::string overwritten = error_of_read([&] { write_shard("a.bin", {1, 2, 4}); });
  EXPECT_EQ(overwritten, path.string() + ": the file was written to after it was opened");
}

TEST_F(TokenShardTest, WhatWasReplacedOrRemovedStaysAsItWas) {
  const auto path = write_shard("a.bin", {1, 2, 3});
  const TokenShard shard(path);
  std::filesystem::rename(write_shard("b.bin", {4, 5}), path);
  std::vector<uint16_t> tokens(3);
  shard.read(0, tokens);
  EXPECT_EQ(tokens, (std::vector<uint16_t>{1, 2, 3}));
  std::filesystem::remove(path);
  shard.read(0, tokens);
  EXPECT_EQ(tokens, (std::vector<uint16_t>{1, 2, 3}));
}

TEST_F(TokenShardTest, RefusesWrongHeaders) {
  EXPECT_NE(error_for(with_header(0, 20240522)).find("magic number 20240522, expected 20240520"), std::string::npos);
  EXPECT_NE(error_for(with_header(1, 7)).find("version 7, expected 1"), std::string::npos);
  EXPECT_NE(error_for(with_header(2, 4)).find("promises 4 tokens (1032 bytes), the file has 1030"), std::string::npos);
  EXPECT_NE(error_for(with_header(2, -1)).find("promises -1 tokens"), std::string::npos);
}

TEST_F(TokenShardTest, RefusesEveryTruncation) {
  const std::string bytes = content_of(write_shard("whole.bin", {1, 2, 3}));
  for (size_t size = 0; size < bytes.size(); ++size) error_for(bytes.substr(0, size));
  error_for(bytes + "x");
}

TEST_F(TokenShardTest, RefusesWhatIsNoFile) {
  error_of([&] { TokenShard shard(folder_ / "missing.bin"); });
  error_of([&] { TokenShard shard(folder_.path()); });
  error_of([&] { TokenShardWriter writer(folder_ / "no" / "folder.bin"); });
}

// Whatever the bytes are, the reader either refuses them or they are a shard of that very size.
TEST_F(TokenShardTest, SurvivesRandomBytes) {
  std::mt19937_64 random(1);
  const std::string good = content_of(write_shard("whole.bin", std::vector<int32_t>(50, 9)));
  int accepted = 0;
  for (int round = 0; round < 500; ++round) {
    std::string bytes = good.substr(0, random() % 2 == 0 ? good.size() : random() % good.size());
    const size_t changes = random() % 3;
    for (size_t i = 0; i < changes && !bytes.empty(); ++i) bytes[random() % bytes.size()] = static_cast<char>(random());
    const auto path = folder_.write("fuzz.bin", bytes);
    try {
      const TokenShard shard(path);
      ASSERT_EQ(bytes.size(), 1024U + 2U * static_cast<size_t>(shard.size()));
      ++accepted;
    } catch (const Error&) {
    }
  }
  EXPECT_GT(accepted, 0);
  EXPECT_LT(accepted, 500);
}

TEST_F(TokenShardTest, StreamCrossesShards) {
  const TokenStream stream({write_shard("a.bin", {0, 1, 2}), write_shard("b.bin", {}), write_shard("c.bin", {3, 4})},
                           5);
  ASSERT_EQ(stream.size(), 5);
  for (int64_t first = 0; first <= 5; ++first) {
    for (int64_t count = 0; count <= 5 - first; ++count) {
      std::vector<int64_t> copied(static_cast<size_t>(count), -1);
      stream.copy(first, count, copied.data());
      std::vector<int64_t> expected(static_cast<size_t>(count));
      std::iota(expected.begin(), expected.end(), first);
      EXPECT_EQ(copied, expected);
    }
  }
  int64_t out[8];
  EXPECT_THROW(stream.copy(0, 6, out), std::out_of_range);
  EXPECT_THROW(stream.copy(5, 1, out), std::out_of_range);
  EXPECT_THROW(stream.copy(-1, 1, out), std::out_of_range);
}

TEST_F(TokenShardTest, StreamRefusesIdsOutOfRange) {
  const auto bad = write_shard("bad.bin", {1, 2, 257, 3});
  const std::string message = error_of([&] { TokenStream stream({write_shard("good.bin", {1}), bad}, 257); });
  EXPECT_EQ(message, bad.string() + ": token 2 has id 257, expected less than 257");
}

}  // namespace
}  // namespace tda
