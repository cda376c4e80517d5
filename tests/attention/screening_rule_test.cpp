// The rule that leaves a head of the Hopper forward unscreened after a call in which its screen did not pay.
#include "attention/cuda/sm90/forward/screen/rule.h"

#include <gtest/gtest.h>

#include <limits>

namespace tda::cuda::sm90 {
namespace {

ScreeningCounters counted(int screened, int crowded, int unscreened_calls = 0) {
  ScreeningCounters counters{};
  counters.row_tiles = 64;
  counters.screened = screened;
  counters.crowded = crowded;
  counters.unscreened_calls = unscreened_calls;
  return counters;
}

TEST(ScreeningRule, ScreensWhatIsUnknown) {
  EXPECT_EQ(next_unscreened_calls({}, 2048), 0);
  // All row tiles had a threshold that is not positive: they are computed densely either way.
  EXPECT_EQ(next_unscreened_calls(counted(0, 0), 2048), 0);
}

TEST(ScreeningRule, LeavesOutHeadsThatAreNearlyAllCrowded) {
  EXPECT_EQ(next_unscreened_calls(counted(64, 64), 2048), 1);
  EXPECT_EQ(next_unscreened_calls(counted(64, 59), 2048), 1);  // 5 * 5 * 2048 <= 59 * 1024
  EXPECT_EQ(next_unscreened_calls(counted(64, 58), 2048), 0);  // 5 * 6 * 2048 > 58 * 1024
  EXPECT_EQ(next_unscreened_calls(counted(64, 32), 2048), 0);
  EXPECT_EQ(next_unscreened_calls(counted(64, 0), 2048), 0);
}

TEST(ScreeningRule, AsksForMoreTheMoreKeysASparseRowWouldCost) {
  const ScreeningCounters nearly = counted(256, 250);
  EXPECT_EQ(next_unscreened_calls(nearly, 512), 1);
  EXPECT_EQ(next_unscreened_calls(nearly, 8192), 1);
  EXPECT_EQ(next_unscreened_calls(nearly, 16384), 0);
  EXPECT_EQ(next_unscreened_calls(counted(256, 256), 1 << 30), 1);
}

TEST(ScreeningRule, ScreensAgainEverySixteenthCall) {
  int screened = 0;
  ScreeningCounters last = counted(64, 64);
  for (int call = 0; call < 160; ++call) {
    const int unscreened_calls = next_unscreened_calls(last, 2048);
    last = unscreened_calls == 0 ? counted(64, 64) : counted(0, 0, unscreened_calls);
    screened += unscreened_calls == 0 ? 1 : 0;
  }
  EXPECT_EQ(screened, 10);
}

TEST(ScreeningRule, RecoversFromAnyContent) {
  constexpr std::int32_t kLeast = std::numeric_limits<std::int32_t>::min();
  constexpr std::int32_t kMost = std::numeric_limits<std::int32_t>::max();
  for (const std::int32_t value : {kLeast, -1, 15, 16, kMost}) {
    const ScreeningCounters garbage{value, value, value, value, value, value, value};
    EXPECT_EQ(next_unscreened_calls(garbage, kMost / 2), 0);
  }
}

TEST(ScreeningRule, CountsShortRowTilesByTheirCandidates) {
  EXPECT_FALSE(is_crowded(0, 63, 1));
  EXPECT_TRUE(is_crowded(3, 63, 1));
  EXPECT_FALSE(is_crowded(3, 63, 2));
  EXPECT_FALSE(is_crowded(5, 64, 1));
  EXPECT_TRUE(is_crowded(6, 64, 1));
}

TEST(ScreeningRule, LeavesOutCallsOfFewKeys) {
  AttentionShape shape{.batch = 1, .query_heads = 2, .key_heads = 2, .query_length = 1, .head_dim = 64};
  shape.key_length = 768;
  EXPECT_TRUE(is_too_short_to_screen(shape));
  shape.key_length = 769;
  EXPECT_FALSE(is_too_short_to_screen(shape));
  shape.head_dim = 128;
  EXPECT_TRUE(is_too_short_to_screen(shape));
}

}  // namespace
}  // namespace tda::cuda::sm90
