// How many bytes the survivor index of the CUDA kernels has: a function of shape and options.
#include <gtest/gtest.h>

#include "tda/attention_cuda.h"

namespace tda::test {
namespace {

// Two views of 3 x 6 query and 3 x 2 key heads; 200 queries, so four row tiles.
AttentionShape shape_of(std::int64_t key_length, std::int64_t head_dim) {
  return {3, 6, 2, 200, key_length, head_dim, head_dim};
}
constexpr std::size_t kHeads = 2 * 3 * 6, kKeyHeads = 2 * 3 * 2;

std::size_t bytes_of(const AttentionShape& shape, DataType type, bool normalize = true,
                     const PackedDocuments* documents = nullptr) {
  AttentionOptions options;
  options.data_type = type;
  options.views = 2;
  options.normalize = normalize;
  return attention_cuda_survivor_index_bytes(shape, options, documents);
}

TEST(SurvivorIndexBytes, SlicesAlone) {
  const std::size_t slices = kHeads * 4 * 2 * 4;  // two words of 512 keys a row tile
  EXPECT_EQ(bytes_of(shape_of(1000, 64), DataType::kFloat32), slices);
  EXPECT_EQ(bytes_of(shape_of(1000, 80), DataType::kBFloat16), slices);
  EXPECT_EQ(bytes_of(shape_of(1000, 64), DataType::kBFloat16, false), slices);
}

TEST(SurvivorIndexBytes, AddsFactorsOfNormalizedRows) {
  const std::size_t slices = kHeads * 4 * 2 * 4, factors = 64 + 4 * (kHeads * 200 + kKeyHeads * 1000);
  static_assert(slices % 64 == 0);
  for (const std::int64_t dim : {64, 128}) {
    EXPECT_EQ(bytes_of(shape_of(1000, dim), DataType::kBFloat16), slices + factors);
    EXPECT_EQ(bytes_of(shape_of(1000, dim), DataType::kFloat16), slices + factors);
  }
}

TEST(SurvivorIndexBytes, AddsListsOfLongSequences) {
  const std::size_t slices = kHeads * 4 * 16 * 4, lists = 192 + 64 * kHeads * 200;  // 36 totals take 48 words
  const std::size_t factors = 64 + 4 * (kHeads * 200 + kKeyHeads * 8192);
  EXPECT_EQ(bytes_of(shape_of(8192, 64), DataType::kFloat16, false), slices + lists);
  EXPECT_EQ(bytes_of(shape_of(8192, 64), DataType::kFloat16), slices + lists + factors);
}

TEST(SurvivorIndexBytes, AddsFactorsOfPackedDocuments) {
  PackedDocuments documents;
  documents.count = 5;
  documents.longest_query = 100;
  documents.longest_key = 600;
  AttentionShape shape = shape_of(9000, 64);
  shape.batch = 1;
  const std::size_t slices = kHeads / 3 * (200 / 64 + 5) * 2 * 4, rounded = (slices + 63) / 64 * 64;
  const std::size_t factors = 64 + 4 * (kHeads / 3 * 200 + kKeyHeads / 3 * 9000);
  EXPECT_EQ(bytes_of(shape, DataType::kBFloat16, false, &documents), slices);
  EXPECT_EQ(bytes_of(shape, DataType::kBFloat16, true, &documents), rounded + factors);
}

}  // namespace
}  // namespace tda::test
