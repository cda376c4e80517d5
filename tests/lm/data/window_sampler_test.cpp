#include "lm/data/window_sampler.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <vector>

#include "temporary_folder.h"

namespace tda {
namespace {

// A stream whose token at position i is i.
class WindowSamplerTest : public testing::Test {
 protected:
  explicit WindowSamplerTest(int64_t size = 1003) {
    std::vector<int32_t> ids(static_cast<size_t>(size));
    std::iota(ids.begin(), ids.end(), 0);
    TokenShardWriter writer(folder_ / "train_000000.bin");
    writer.append(ids);
    writer.close();
    stream_ = std::make_unique<TokenStream>(std::vector{folder_ / "train_000000.bin"}, 65536);
  }

  TemporaryFolder folder_;
  std::unique_ptr<TokenStream> stream_;
};

TEST_F(WindowSamplerTest, EveryTargetOnceAnEpoch) {
  const WindowSampler sampler(*stream_, 10, 1337);
  ASSERT_EQ(sampler.windows_per_epoch(), 100);
  for (int64_t epoch = 0; epoch < 3; ++epoch) {
    const at::Tensor windows = sampler.batch(epoch * 100, 100);
    ASSERT_EQ(windows.sizes(), (std::vector<int64_t>{100, 11}));
    ASSERT_EQ(windows.scalar_type(), at::kLong);
    const at::Tensor targets = windows.slice(1, 1).reshape({-1});
    EXPECT_TRUE(at::equal(std::get<0>(targets.sort()), at::arange(1, 1001)));
    // Inside a window the text is in order.
    EXPECT_TRUE(at::equal(windows.slice(1, 1) - windows.slice(1, 0, -1), at::ones({100, 10}, at::kLong)));
  }
}

TEST_F(WindowSamplerTest, EpochsAndSeedsReshuffle) {
  const WindowSampler sampler(*stream_, 10, 1);
  const WindowSampler other(*stream_, 10, 2);
  EXPECT_FALSE(at::equal(sampler.batch(0, 100), sampler.batch(100, 100)));
  EXPECT_FALSE(at::equal(sampler.batch(0, 100), other.batch(0, 100)));
}

TEST_F(WindowSamplerTest, BatchesDependOnTheGlobalIndexAlone) {
  const WindowSampler sampler(*stream_, 7, 42);
  const at::Tensor whole = sampler.batch(0, 300);
  const WindowSampler resumed(*stream_, 7, 42);
  for (const int64_t size : {1, 4, 25, 60}) {
    for (int64_t first = 0; first < 300; first += size) {
      EXPECT_TRUE(at::equal(resumed.batch(first, size), whole.slice(0, first, first + size)));
    }
  }
}

TEST_F(WindowSamplerTest, WithoutSeedInTheOrderOfTheText) {
  const WindowSampler sampler(*stream_, 100, std::nullopt);
  ASSERT_EQ(sampler.windows_per_epoch(), 10);
  for (int64_t i = 0; i < 20; ++i) EXPECT_EQ(sampler.batch(i, 1)[0][0].item<int64_t>(), i % 10 * 100);
}

TEST_F(WindowSamplerTest, TheLastTokenIsATargetWhenItFits) {
  EXPECT_EQ(WindowSampler(*stream_, 1002, 1).windows_per_epoch(), 1);
  EXPECT_EQ(WindowSampler(*stream_, 501, 1).windows_per_epoch(), 2);
  EXPECT_EQ(WindowSampler(*stream_, 502, 1).windows_per_epoch(), 1);
}

TEST_F(WindowSamplerTest, RefusesWhatFillsNoWindow) {
  EXPECT_EQ(error_of([&] { WindowSampler(*stream_, 1003, 1); }),
            "1003 tokens do not fill one window of context + 1 = 1004");
  EXPECT_EQ(error_of([&] { WindowSampler(*stream_, 0, 1); }), "context is 0, expected at least 1");
  const TokenStream nothing({}, 10);
  error_of([&] { WindowSampler(nothing, 1, 1); });
}

}  // namespace
}  // namespace tda
