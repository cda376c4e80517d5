#include "lm/analysis/map_statistics.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <stdexcept>
#include <vector>

namespace tda {
namespace {

// One instance, one head, written out row by row.
at::Tensor map_of(const std::vector<std::vector<double>>& rows) {
  const auto size = static_cast<int64_t>(rows.size());
  at::Tensor map = at::zeros({1, 1, size, size}, at::kDouble);
  for (int64_t i = 0; i < size; ++i) {
    for (int64_t j = 0; j < size; ++j) {
      map.index_put_({0, 0, i, j}, rows[static_cast<size_t>(i)][static_cast<size_t>(j)]);
    }
  }
  return map;
}

at::Tensor uniform_map(int64_t size) {
  const at::Tensor visible = at::arange(1, size + 1, at::kDouble).view({1, 1, size, 1});
  return at::ones({1, 1, size, size}, at::kDouble).tril() / visible;
}

double only(const at::Tensor& per_head) {
  EXPECT_EQ(per_head.numel(), 1);
  return per_head.item<double>();
}

// Rows: one key; empty; signed with two survivors; one survivor at the first key.
at::Tensor signed_example() { return map_of({{0.5, 0, 0, 0}, {0, 0, 0, 0}, {-1, 0, 3, 0}, {2, 0, 0, 0}}); }

TEST(MapStatistics, CountsByHand) {
  const at::Tensor map = signed_example();
  EXPECT_DOUBLE_EQ(only(exact_zero_share(map)), 6.0 / 10);
  EXPECT_DOUBLE_EQ(only(empty_row_share(map)), 1.0 / 4);
  EXPECT_DOUBLE_EQ(only(survivors_per_row(map)), 4.0 / 4);
}

TEST(MapStatistics, SinkRatioByHand) {
  const at::Tensor map = signed_example();
  // First key: shares 1, 0 (empty row), |-1|/4, 1; uniform attention gives 1, 1/2, 1/3, 1/4.
  EXPECT_NEAR(only(sink_ratio(map)), (2.25 / 4) / ((1 + 0.5 + 1.0 / 3 + 0.25) / 4), 1e-15);
  // Third key: rows 3 and 4 see it, with shares 3/4 and 0.
  EXPECT_NEAR(only(sink_ratio(map, 3)), (0.75 / 2) / ((1.0 / 3 + 0.25) / 2), 1e-15);
}

TEST(MapStatistics, EffectiveEntropyByHand) {
  // Row 2 is empty, row 3 splits 1/4 : 3/4 over three visible keys, row 4 has one survivor.
  const double split = -(0.25 * std::log(0.25) + 0.75 * std::log(0.75));
  EXPECT_NEAR(only(effective_entropy(signed_example())), split / std::log(3.0) / 3, 1e-15);
}

TEST(MapStatistics, UniformAttentionIsTheUnit) {
  for (const int64_t size : {2, 7, 64}) {
    const at::Tensor map = uniform_map(size);
    EXPECT_NEAR(only(sink_ratio(map)), 1.0, 1e-12);
    EXPECT_NEAR(only(sink_ratio(map, 2)), 1.0, 1e-12);
    EXPECT_NEAR(only(effective_entropy(map)), 1.0, 1e-12);
    EXPECT_EQ(only(exact_zero_share(map)), 0.0);
    EXPECT_EQ(only(empty_row_share(map)), 0.0);
    EXPECT_DOUBLE_EQ(only(survivors_per_row(map)), (static_cast<double>(size) + 1) / 2);
  }
}

// The value of uniform attention itself, at the length of the paper: H_T / T.
TEST(MapStatistics, UniformShareOfTheFirstKeyAt1024) {
  at::Tensor all_on_first = at::zeros({1, 1, 1024, 1024}, at::kFloat);
  all_on_first.select(-1, 0).fill_(1);
  EXPECT_NEAR(1.0 / only(sink_ratio(all_on_first)), 0.007333, 5e-7);
}

// A mask is no sparsity: a softmax has exact zeros above the diagonal only, and those must not count.
TEST(MapStatistics, SoftmaxIsNotSparse) {
  at::manual_seed(1);
  const at::Tensor scores = at::randn({2, 3, 128, 128});
  const at::Tensor mask = at::ones({128, 128}, at::kBool).triu(1);
  const at::Tensor weights = at::softmax(scores.masked_fill(mask, -INFINITY), -1);
  ASSERT_GT(weights.eq(0).to(at::kDouble).mean().item<double>(), 0.49);
  EXPECT_TRUE(exact_zero_share(weights).eq(0).all().item<bool>());
  EXPECT_TRUE(empty_row_share(weights).eq(0).all().item<bool>());
}

// Why weights are wanted in float32: the same softmax in half precision underflows to exact zeros.
TEST(MapStatistics, HalfPrecisionUnderflowWouldLookSparse) {
  at::Tensor scores = at::full({1, 1, 2, 2}, 0.0);
  scores.index_put_({0, 0, 1, 0}, -30.0);
  const at::Tensor weights = at::softmax(scores, -1);
  EXPECT_EQ(only(exact_zero_share(weights)), 0.0);
  EXPECT_DOUBLE_EQ(only(exact_zero_share(weights.to(at::kHalf))), 1.0 / 3);
}

TEST(MapStatistics, IgnoresWhatStandsAboveTheDiagonal) {
  const at::Tensor clean = signed_example();
  const at::Tensor dirty = clean + at::full({4, 4}, 7.0, at::kDouble).triu(1);
  const MapStatistics a = map_statistics(clean);
  const MapStatistics b = map_statistics(dirty);
  EXPECT_TRUE(a.sparsity.equal(b.sparsity));
  EXPECT_TRUE(a.empty_rows.equal(b.empty_rows));
  EXPECT_TRUE(a.survivors_per_row.equal(b.survivors_per_row));
  EXPECT_TRUE(a.sink_ratio.equal(b.sink_ratio));
  EXPECT_TRUE(a.effective_entropy.equal(b.effective_entropy));
}

TEST(MapStatistics, AllRowsEmpty) {
  const MapStatistics statistics = map_statistics(at::zeros({2, 1, 5, 5}));
  EXPECT_EQ(only(statistics.sparsity), 1.0);
  EXPECT_EQ(only(statistics.empty_rows), 1.0);
  EXPECT_EQ(only(statistics.survivors_per_row), 0.0);
  EXPECT_EQ(only(statistics.sink_ratio), 0.0);
  EXPECT_EQ(only(statistics.effective_entropy), 0.0);
}

TEST(MapStatistics, HeadsAreKeptApartAndInstancesAveraged) {
  const at::Tensor empty = at::zeros({1, 1, 4, 4}, at::kDouble);
  const at::Tensor first_head = at::cat({uniform_map(4), empty}, 0);
  const at::Tensor second_head = at::cat({empty, empty}, 0);
  const at::Tensor shares = exact_zero_share(at::cat({first_head, second_head}, 1));
  ASSERT_EQ(shares.sizes(), at::IntArrayRef({2}));
  EXPECT_DOUBLE_EQ(shares[0].item<double>(), 0.5);
  EXPECT_DOUBLE_EQ(shares[1].item<double>(), 1.0);
}

TEST(MapStatistics, RefusesWhatIsNoMap) {
  EXPECT_THROW(exact_zero_share(at::zeros({2, 3, 4, 5})), std::invalid_argument);
  EXPECT_THROW(exact_zero_share(at::zeros({3, 4, 4})), std::invalid_argument);
  EXPECT_THROW(exact_zero_share(at::zeros({0, 1, 4, 4})), std::invalid_argument);
  EXPECT_THROW(exact_zero_share(at::zeros({1, 1, 4, 4}, at::kLong)), std::invalid_argument);
  EXPECT_THROW(sink_ratio(at::zeros({1, 1, 4, 4}), 5), std::invalid_argument);
  EXPECT_THROW(sink_ratio(at::zeros({1, 1, 4, 4}), 0), std::invalid_argument);
  EXPECT_THROW(effective_entropy(at::zeros({1, 1, 1, 1})), std::invalid_argument);
}

}  // namespace
}  // namespace tda
