#include "lm/data/tokenizer.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <sstream>
#include <thread>
#include <unordered_map>
#include <vector>

#include "lm/data/base64.h"
#include "lm/data/gpt2_ranks.h"
#include "lm/data/gpt2_tokenizer.h"
#include "lm/data/text_encoder.h"
#include "lm/data/token_text.h"
#include "real_data.h"
#include "temporary_folder.h"

namespace tda {
namespace {

using Ids = std::vector<int32_t>;

// Stands for GPT-2's ranks where those are not at hand: all bytes, then 50,000 unions of two earlier tokens.
Gpt2Ranks made_up_ranks() {
  std::mt19937 random(9);
  Gpt2Ranks ranks;
  std::unordered_map<std::string, bool> known;
  for (int byte = 0; byte < 256; ++byte) ranks.emplace_back(1, static_cast<char>(255 - byte));
  for (const std::string& token : ranks) known[token] = true;
  while (ranks.size() < kGpt2Ranks) {
    const std::string joined = ranks[random() % std::min<size_t>(ranks.size(), 3000)] + ranks[random() % 256];
    if (!known.emplace(joined, true).second) continue;
    ranks.push_back(joined);
  }
  return ranks;
}

std::string random_bytes(std::mt19937& random, size_t size) {
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random() % 3 == 0 ? random() : 'a' + random() % 4);
  return bytes;
}

class EveryTokenizer : public testing::TestWithParam<std::string> {
 protected:
  static const Tokenizer& tokenizer() {
    static const std::unique_ptr<Tokenizer> byte = make_tokenizer("byte");
    static const Gpt2Tokenizer gpt2(made_up_ranks());
    if (GetParam() == "byte") return *byte;
    return gpt2;
  }
};

TEST_P(EveryTokenizer, ArbitraryBytesComeBack) {
  std::mt19937 random(1);
  for (int round = 0; round < 300; ++round) {
    const std::string bytes = random_bytes(random, random() % 200);
    const Ids ids = tokenizer().encode(bytes);
    ASSERT_EQ(tokenizer().decode(ids), bytes);
    for (const int32_t id : ids) ASSERT_LT(id, tokenizer().end_of_text());
  }
}

TEST_P(EveryTokenizer, MarkerIsOrdinaryTextToEncodeAndEndOfTextToDecode) {
  const Ids ids = tokenizer().encode("a<|endoftext|>b");
  EXPECT_GT(ids.size(), 3U);
  EXPECT_EQ(tokenizer().decode(ids), "a<|endoftext|>b");
  EXPECT_EQ(tokenizer().decode({tokenizer().end_of_text()}), "<|endoftext|>");
}

TEST_P(EveryTokenizer, RefusesIdsOutOfRange) {
  const int size = tokenizer().vocabulary_size();
  EXPECT_EQ(tokenizer().end_of_text(), size - 1);
  for (const int32_t id : {-1, size, tokenizer().padded_vocabulary_size(), INT32_MAX, INT32_MIN}) {
    EXPECT_NE(error_of([&] { tokenizer().decode({id}); }).find("token id " + std::to_string(id)), std::string::npos);
  }
}

TEST_P(EveryTokenizer, SavedAndLoadedIsTheSame) {
  const TemporaryFolder folder;
  tokenizer().save(folder.path());
  const auto loaded = load_tokenizer(folder.path());
  EXPECT_EQ(loaded->name(), GetParam());
  EXPECT_EQ(loaded->vocabulary_size(), tokenizer().vocabulary_size());
  std::mt19937 random(2);
  const std::string bytes = random_bytes(random, 5000);
  EXPECT_EQ(loaded->encode(bytes), tokenizer().encode(bytes));
}

TEST_P(EveryTokenizer, TextInPartsGivesTheIdsOfTheWhole) {
  std::mt19937 random(4);
  std::string text;
  while (text.size() < 400'000) {
    text += random_bytes(random, random() % 30);
    text += random() % 8 == 0 ? "\n" : " ";
  }
  Ids ids;
  TextEncoder encoder(tokenizer(),
                      [&](std::span<const int32_t> part) { ids.insert(ids.end(), part.begin(), part.end()); });
  for (size_t begin = 0; begin < text.size();) {
    const size_t size = 1 + random() % 50'000;
    encoder.append(std::string_view(text).substr(begin, size));
    begin += size;
  }
  encoder.finish();
  EXPECT_EQ(ids, tokenizer().encode(text));
}

TEST_P(EveryTokenizer, ThreadsAgree) {
  std::mt19937 random(8);
  const std::string text = random_bytes(random, 100'000);
  const Ids expected = tokenizer().encode(text);
  std::vector<Ids> results(4);
  {
    std::vector<std::jthread> threads;
    for (Ids& result : results) threads.emplace_back([&] { result = tokenizer().encode(text); });
  }
  for (const Ids& result : results) EXPECT_EQ(result, expected);
}

TEST_P(EveryTokenizer, StreamsOfIdsAreTextSeparatedByAnyWhiteSpace) {
  std::istringstream text("abc abc");
  std::ostringstream ids;
  encode_stream(tokenizer(), text, ids);
  EXPECT_EQ(ids.str().back(), '\n');
  std::string spread = "\n\t ";
  for (const char c : ids.str()) spread += c == ' ' ? std::string("\r\n\v ") : std::string(1, c);
  std::istringstream back(spread);
  std::ostringstream decoded;
  decode_stream(tokenizer(), back, decoded);
  EXPECT_EQ(decoded.str(), "abc abc");
}

TEST_P(EveryTokenizer, StreamRefusesWhatIsNoId) {
  for (const std::string bad : {"x", "1x", "1.5", "+1", "0x1", "99999999999", "-1", "1 , 2"}) {
    std::istringstream in("1 2 " + bad);
    std::ostringstream out;
    error_of([&] { decode_stream(tokenizer(), in, out); });
    EXPECT_EQ(out.str(), "");
  }
}

INSTANTIATE_TEST_SUITE_P(All, EveryTokenizer, testing::Values("byte", "gpt2"),
                         [](const auto& parameter) { return parameter.param; });

TEST(ByteTokenizer, IdsAreBytes) {
  const auto tokenizer = make_tokenizer("byte");
  EXPECT_EQ(tokenizer->encode(std::string_view("a\0\xff", 3)), (Ids{97, 0, 255}));
  EXPECT_EQ(tokenizer->vocabulary_size(), 257);
  EXPECT_EQ(tokenizer->padded_vocabulary_size(), 320);
  EXPECT_EQ(tokenizer->end_of_text(), 256);
}

TEST(MakeTokenizer, RefusesUnknownNamesAndMissingRanks) {
  EXPECT_EQ(error_of([] { make_tokenizer("bpe"); }), "unknown tokenizer 'bpe': expected byte or gpt2");
  EXPECT_EQ(error_of([] { make_tokenizer("gpt2", "/no/such.tiktoken"); }), "no ranks of GPT-2 at /no/such.tiktoken");
  const TemporaryFolder folder;
  error_of([&] { make_tokenizer("gpt2", folder.path()); });
  error_of([&] { load_tokenizer(folder.path()); });
}

TEST(Gpt2Ranks, DamagedFilesAreRefusedByLine) {
  const TemporaryFolder folder;
  const Gpt2Ranks ranks = made_up_ranks();
  write_gpt2_ranks(folder / "whole.tiktoken", ranks);
  EXPECT_EQ(read_gpt2_ranks(folder / "whole.tiktoken"), ranks);
  const std::string whole = content_of(folder / "whole.tiktoken");
  const auto message_for = [&](const std::string& content) {
    const auto path = folder.write("damaged.tiktoken", content);
    const std::string message = error_of([&] { read_gpt2_ranks(path); });
    EXPECT_EQ(message.rfind(path.string(), 0), 0U) << message;
    return message.substr(path.string().size());
  };
  EXPECT_EQ(message_for(""), " holds 0 tokens, expected the 50256 of GPT-2");
  EXPECT_EQ(message_for("/w== 0\n/g== 2\n"), ", line 2: rank 2, expected 1");
  EXPECT_EQ(message_for("/w== 0\n/g=1\n"), ", line 2: expected a token in base64, a blank and its rank");
  EXPECT_EQ(message_for("/w== 0\n/h== 1\n"), ", line 2: expected a token in base64, a blank and its rank");
  EXPECT_EQ(message_for(whole.substr(0, whole.rfind('\n', whole.size() - 2) + 1)),
            " holds 50255 tokens, expected the 50256 of GPT-2");
  Gpt2Ranks twice = ranks;
  twice[300] = twice[301];
  write_gpt2_ranks(folder / "twice.tiktoken", twice);
  error_of([&] { read_gpt2_ranks(folder / "twice.tiktoken"); });
  Gpt2Ranks without_byte = ranks;
  without_byte[7] = "no such token";
  write_gpt2_ranks(folder / "without.tiktoken", without_byte);
  error_of([&] { read_gpt2_ranks(folder / "without.tiktoken"); });
}

TEST(Base64, RoundTripsAndRefuses) {
  std::mt19937 random(1);
  for (size_t size = 0; size < 50; ++size) {
    const std::string bytes = random_bytes(random, size);
    EXPECT_EQ(base64_decode(base64_encode(bytes)), bytes);
  }
  EXPECT_EQ(base64_encode("Man"), "TWFu");
  EXPECT_EQ(base64_encode("Ma"), "TWE=");
  EXPECT_EQ(base64_encode("M"), "TQ==");
  for (const char* bad : {"TQ", "TQ=", "TR==", "T", "TWFu=", "TW Fu", "TQ==TQ==", "===="}) {
    EXPECT_EQ(base64_decode(bad), std::nullopt) << bad;
  }
}

TEST(Gpt2Tokenizer, GoldenFiles) {
  const auto folder = real_data() / "bpe";
  if (!std::filesystem::exists(folder)) GTEST_SKIP() << "no " << folder;
  const auto tokenizer = make_tokenizer("gpt2", folder);
  for (const std::string name : {"golden", "golden-odd"}) {
    const std::string text = content_of(folder / (name + ".txt"));
    const std::string packed = content_of(folder / (name + ".u16"));
    std::vector<uint16_t> golden(packed.size() / 2);
    std::memcpy(golden.data(), packed.data(), packed.size());
    EXPECT_EQ(tokenizer->encode(text), Ids(golden.begin(), golden.end()));
    EXPECT_EQ(tokenizer->decode(Ids(golden.begin(), golden.end())), text);
  }
}

}  // namespace
}  // namespace tda
