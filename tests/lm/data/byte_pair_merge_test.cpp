#include "lm/data/byte_pair_merge.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

namespace tda {
namespace {

// The definition: join the leftmost pair of lowest rank until none has a rank.
std::vector<int32_t> merge_naively(const BytePairMerge::Ranks& ranks, const std::string& piece) {
  std::vector<std::string> parts;
  for (const char byte : piece) parts.emplace_back(1, byte);
  for (;;) {
    int32_t best_rank = INT32_MAX;
    size_t best = 0;
    for (size_t i = 0; i + 1 < parts.size(); ++i) {
      const auto found = ranks.find(parts[i] + parts[i + 1]);
      if (found != ranks.end() && found->second < best_rank) {
        best_rank = found->second;
        best = i;
      }
    }
    if (best_rank == INT32_MAX) break;
    parts[best] += parts[best + 1];
    parts.erase(parts.begin() + static_cast<std::ptrdiff_t>(best) + 1);
  }
  std::vector<int32_t> ids;
  for (const std::string& part : parts) ids.push_back(ranks.at(part));
  return ids;
}

// Single letters, then unions of two earlier tokens, as training a BPE would leave them.
std::vector<std::string> random_tokens(std::mt19937& random, const std::string& alphabet, size_t count) {
  std::vector<std::string> tokens;
  for (const char letter : alphabet) tokens.emplace_back(1, letter);
  while (tokens.size() < count) {
    const std::string joined = tokens[random() % tokens.size()] + tokens[random() % tokens.size()];
    if (std::ranges::find(tokens, joined) == tokens.end()) tokens.push_back(joined);
  }
  return tokens;
}

BytePairMerge::Ranks ranks_of(const std::vector<std::string>& tokens) {
  BytePairMerge::Ranks ranks;
  for (size_t i = 0; i < tokens.size(); ++i) ranks.emplace(tokens[i], static_cast<int32_t>(i));
  return ranks;
}

TEST(BytePairMerge, EqualsTheDefinition) {
  std::mt19937 random(11);
  for (int round = 0; round < 60; ++round) {
    const std::string alphabet = round % 2 == 0 ? "ab" : "abcde";
    const auto tokens = random_tokens(random, alphabet, 8 + random() % 60);
    const auto ranks = ranks_of(tokens);
    BytePairMerge merge(ranks);
    for (int i = 0; i < 40; ++i) {
      std::string piece;
      const size_t size = random() % 60;
      for (size_t j = 0; j < size; ++j) piece += alphabet[random() % alphabet.size()];
      std::vector<int32_t> ids = {-1};
      merge(piece, ids);
      auto expected = merge_naively(ranks, piece);
      expected.insert(expected.begin(), -1);
      ASSERT_EQ(ids, expected) << piece;
    }
  }
}

// Quadratic time would take minutes here.
TEST(BytePairMerge, LongPiecesTakeLinearithmicTime) {
  const std::vector<std::string> tokens = {"a", "aa", "aaaa", "aaaaaaaa"};
  const auto ranks = ranks_of(tokens);
  BytePairMerge merge(ranks);
  std::vector<int32_t> ids;
  merge(std::string((1 << 20) + 5, 'a'), ids);
  std::vector<int32_t> expected(1 << 17, 3);
  expected.push_back(2);
  expected.push_back(0);
  EXPECT_EQ(ids, expected);
}

}  // namespace
}  // namespace tda
