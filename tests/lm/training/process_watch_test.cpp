#include "lm/training/process_watch.h"

#include <gtest/gtest.h>

#include <vector>

namespace tda {
namespace {

using State = SignOfLife::State;

// What two or three processes write while nothing is wrong: every look sees a new beat.
class LivenessJudgeTest : public testing::Test {
 protected:
  static constexpr LivenessJudge::Limits kLimits{.dead = 3, .hangs = 5, .slow = 20};

  std::optional<LivenessJudge::Verdict> look(int times, const std::vector<bool>& beats) {
    std::optional<LivenessJudge::Verdict> verdict;
    for (int i = 0; i < times && !verdict; ++i, ++looks_) {
      for (std::size_t rank = 0; rank < signs_.size(); ++rank) signs_[rank].beat += beats[rank] ? 1 : 0;
      verdict = judge_.look(signs_);
    }
    return verdict;
  }

  LivenessJudge judge_{0, kLimits};
  std::vector<SignOfLife> signs_ = std::vector<SignOfLife>(3);
  int looks_ = 0;
};

TEST_F(LivenessJudgeTest, SilenceIsDeath) {
  EXPECT_FALSE(look(50, {true, true, true}));
  looks_ = 0;
  const auto verdict = look(50, {true, true, false});
  ASSERT_TRUE(verdict);
  EXPECT_EQ(verdict->rank, 2);
  EXPECT_TRUE(verdict->dead);
  EXPECT_EQ(looks_, kLimits.dead);
}

TEST_F(LivenessJudgeTest, ItsOwnSilenceIsNoDeath) { EXPECT_FALSE(look(50, {false, true, true})); }

TEST_F(LivenessJudgeTest, OnlyAProcessThatIsWaitedForHangs) {
  // Rank 1 stands still, but nobody waits for it: it works on something long, like this process.
  EXPECT_FALSE(look(50, {true, true, true}));
  signs_[0].state = signs_[2].state = State::kWaiting;
  const auto verdict = look(50, {true, true, true});
  ASSERT_TRUE(verdict);
  EXPECT_EQ(verdict->rank, 1);
  EXPECT_FALSE(verdict->dead);
  EXPECT_EQ(verdict->looks, kLimits.hangs);
}

TEST_F(LivenessJudgeTest, ProgressIsNoHanging) {
  signs_[0].state = State::kWaiting;
  signs_[2].state = State::kWaiting;
  for (int i = 0; i < 50; ++i) {
    ++signs_[1].activity;
    EXPECT_FALSE(look(kLimits.hangs - 1, {true, true, true})) << i;
  }
}

TEST_F(LivenessJudgeTest, SlowPhasesMayTakeLonger) {
  signs_[0].state = signs_[2].state = State::kWaiting;
  signs_[1].state = State::kSlow;
  EXPECT_FALSE(look(kLimits.slow - 1, {true, true, true}));
  const auto verdict = look(1, {true, true, true});
  ASSERT_TRUE(verdict);
  EXPECT_EQ(verdict->rank, 1);
}

TEST_F(LivenessJudgeTest, WhoLeftIsNotMissed) {
  signs_[1].state = State::kLeft;
  EXPECT_FALSE(look(50, {true, false, true}));
}

TEST_F(LivenessJudgeTest, AFailureIsSeenAtOnce) {
  EXPECT_FALSE(look(1, {true, true, true}));
  signs_[2].state = State::kFailed;
  const auto verdict = look(1, {true, true, true});
  ASSERT_TRUE(verdict);
  EXPECT_EQ(verdict->rank, 2);
  EXPECT_EQ(verdict->last_state, State::kFailed);
}

TEST(SignOfLifeTest, SurvivesTheStore) {
  const SignOfLife sign{123456789012, 42, State::kSlow};
  const SignOfLife read = SignOfLife::parse(sign.text());
  EXPECT_EQ(read.beat, sign.beat);
  EXPECT_EQ(read.activity, sign.activity);
  EXPECT_EQ(read.state, sign.state);
}

}  // namespace
}  // namespace tda
