#include "lm/data/random_permutation.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace tda {
namespace {

std::vector<uint64_t> images(uint64_t size, uint64_t seed, uint64_t stream) {
  const RandomPermutation permutation(size, seed, stream);
  std::vector<uint64_t> result;
  for (uint64_t i = 0; i < size; ++i) result.push_back(permutation(i));
  return result;
}

TEST(RandomPermutation, IsAPermutationOfEverySize) {
  for (uint64_t size = 1; size <= 300; ++size) {
    std::vector<int> seen(size, 0);
    for (const uint64_t image : images(size, 7, size)) {
      ASSERT_LT(image, size);
      ++seen[image];
    }
    for (const int count : seen) ASSERT_EQ(count, 1) << "size " << size;
  }
}

// Frozen, so that a change of the order, which would break the resumption of old runs, does not go unnoticed.
TEST(RandomPermutation, OrderIsFixedForever) {
  EXPECT_EQ(images(10, 1337, 0), (std::vector<uint64_t>{1, 0, 5, 3, 4, 9, 2, 8, 6, 7}));
  EXPECT_EQ(images(10, 1337, 1), (std::vector<uint64_t>{7, 5, 1, 8, 0, 4, 2, 6, 3, 9}));
  const RandomPermutation large(uint64_t{1} << 40, 1, 2);
  EXPECT_EQ(large(123456789), 14056412830U);
}

TEST(RandomPermutation, SeedsAndStreamsDiffer) {
  const auto base = images(1000, 1, 0);
  EXPECT_NE(base, images(1000, 2, 0));
  EXPECT_NE(base, images(1000, 1, 1));
  EXPECT_NE(images(1000, 1, 2), images(1000, 2, 1));
}

// Chi-square of where element 0 goes, over seeds. With 99 degrees of freedom, 99 ± 6·sqrt(2·99) is passed by a uniform
// source with probability above 1 - 1e-8.
TEST(RandomPermutation, FirstImageIsUniform) {
  constexpr int kCells = 100;
  constexpr int kDraws = 20000;
  std::vector<int> counts(kCells, 0);
  for (uint64_t seed = 0; seed < kDraws; ++seed) ++counts[RandomPermutation(kCells, seed, 3)(0)];
  double statistic = 0;
  constexpr double kExpected = static_cast<double>(kDraws) / kCells;
  for (const int count : counts) statistic += (count - kExpected) * (count - kExpected) / kExpected;
  EXPECT_NEAR(statistic, 99, 6 * std::sqrt(2.0 * 99));
}

// Neighbours must not stay neighbours: for a random permutation of n, the number of i with image(i+1) = image(i) + 1 is
// Poisson with mean 1; more than 12 has probability below 1e-9.
TEST(RandomPermutation, NeighboursAreTornApart) {
  const auto order = images(100000, 5, 0);
  int adjacent = 0;
  for (size_t i = 1; i < order.size(); ++i) adjacent += order[i] == order[i - 1] + 1;
  EXPECT_LE(adjacent, 12);
}

}  // namespace
}  // namespace tda
