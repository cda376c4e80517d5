#include "lm/analysis/run_history.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "lm/error.h"

namespace tda {
namespace {

class RunHistory : public ::testing::Test {
 protected:
  void SetUp() override {
    const auto* test = ::testing::UnitTest::GetInstance()->current_test_info();
    run_ = std::filesystem::path(::testing::TempDir()) / (std::string("tda_run_history_") + test->name());
    std::filesystem::remove_all(run_);
    std::filesystem::create_directories(run_);
  }
  void TearDown() override { std::filesystem::remove_all(run_); }

  void write(const std::string& content) { std::ofstream(run_ / "metrics.jsonl", std::ios::binary) << content; }

  std::filesystem::path run_;
};

TEST_F(RunHistory, ReadsWhatWasMeasured) {
  write(
      "{\"step\": 1, \"tokens\": 100, \"train_loss\": 5.5, \"seconds\": 0.5}\n"
      "{\"step\": 2, \"tokens\": 200, \"val_loss\": 4.5, \"sparsity\": [[0.5, 1.0], [0.0, 0.5]], "
      "\"empty_rows\": [[0.25, 0.0], [0.0, 0.0]]}\n");
  const auto history = read_run_history(run_, 100);
  ASSERT_EQ(history.size(), 2u);
  EXPECT_EQ(history[0].step, 1);
  EXPECT_EQ(history[0].tokens, 100);
  EXPECT_EQ(history[0].train_loss, 5.5);
  EXPECT_EQ(history[0].seconds, 0.5);
  EXPECT_FALSE(history[0].val_loss || history[0].sparsity || history[0].empty_rows);
  EXPECT_FALSE(history[1].train_loss);
  EXPECT_EQ(history[1].val_loss, 4.5);
  EXPECT_EQ(history[1].sparsity, 0.5);
  EXPECT_EQ(history[1].empty_rows, 0.0625);
}

// A run that was stopped after step 3 and resumed from its checkpoint of step 1 writes steps 2 and 3 twice.
TEST_F(RunHistory, ARepeatedStepCountsOnceAndLaterStepsAreLeftOut) {
  write(
      "{\"step\": 1, \"tokens\": 1, \"train_loss\": 1}\n{\"step\": 2, \"tokens\": 2, \"train_loss\": 2}\n"
      "{\"step\": 3, \"tokens\": 3, \"train_loss\": 3}\n{\"step\": 2, \"tokens\": 2, \"train_loss\": 2.5}\n"
      "{\"step\": 3, \"tokens\": 3, \"train_loss\": 3.5}\n");
  const auto history = read_run_history(run_, 2);
  ASSERT_EQ(history.size(), 2u);
  EXPECT_EQ(history[1].step, 2);
  EXPECT_EQ(history[1].train_loss, 2.5);
}

TEST_F(RunHistory, AnUnfinishedLastLineIsPassedOver) {
  write("{\"step\": 1, \"tokens\": 1}\n{\"step\": 2, \"tok");
  EXPECT_EQ(read_run_history(run_, 100).size(), 1u);
}

TEST_F(RunHistory, ADamagedLineIsNamed) {
  write("{\"step\": 1, \"tokens\": 1}\n{\"step\": \"two\", \"tokens\": 2}\n");
  try {
    read_run_history(run_, 100);
    FAIL() << "accepted a step that is no number";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("metrics.jsonl line 2"), std::string::npos) << error.what();
  }
}

TEST_F(RunHistory, NoFileIsNoHistory) { EXPECT_TRUE(read_run_history(run_, 100).empty()); }

TEST_F(RunHistory, FindsTheRunOfAStepFolder) {
  const auto step = run_ / "checkpoints" / "step-000123";
  std::filesystem::create_directories(step);
  EXPECT_EQ(run_directory_of(step), std::filesystem::weakly_canonical(run_));
  EXPECT_EQ(step_of(step), 123);
  EXPECT_FALSE(run_directory_of(run_));
  EXPECT_FALSE(step_of(run_ / "step-12x"));
  EXPECT_FALSE(run_directory_of(run_ / "step-000123"));
}

}  // namespace
}  // namespace tda
