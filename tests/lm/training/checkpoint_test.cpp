#include "lm/training/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <csignal>
#include <filesystem>
#include <fstream>
#include <string>

#include "lm/durable_file.h"
#include "lm/error.h"
#include "temporary_directory.h"

namespace tda {
namespace {

namespace fs = std::filesystem;

class CheckpointTest : public ::testing::Test {
 protected:
  void write_step(std::int64_t step) const {
    CheckpointWriter writer(run_, step);
    write_file_durably(writer.directory() / "weights", "weights of step " + std::to_string(step));
    write_file_durably(writer.directory() / "state.json", std::to_string(step));
    writer.commit();
  }

  std::string error_of(const fs::path& path, std::string* hint = nullptr) const {
    try {
      resolve_checkpoint(path);
    } catch (const Error& error) {
      if (hint != nullptr) *hint = error.hint();
      return error.what();
    }
    return "no error";
  }

  TemporaryDirectory directory_;
  fs::path run_ = directory_.path() / "run";
};

void expect_contains(const std::string& text, const std::string& part) {
  EXPECT_NE(text.find(part), std::string::npos) << "\"" << text << "\" lacks \"" << part << "\"";
}

TEST_F(CheckpointTest, RunDirectoryStandsForItsNewestStep) {
  write_step(9);
  write_step(1000000);
  write_step(200);
  EXPECT_EQ(resolve_checkpoint(run_), checkpoint_directory(run_, 1000000));
  EXPECT_EQ(resolve_checkpoint(run_.string() + "/"), checkpoint_directory(run_, 1000000));
  EXPECT_EQ(resolve_checkpoint(checkpoint_directory(run_, 9)), checkpoint_directory(run_, 9));
  EXPECT_EQ(resolve_checkpoint(checkpoint_directory(run_, 9).string() + "/"), checkpoint_directory(run_, 9));
}

TEST_F(CheckpointTest, ChangedByteIsRefusedByFileNameAndTheStepBeforeIsOffered) {
  write_step(10);
  write_step(20);
  const fs::path newest = checkpoint_directory(run_, 20);
  {
    std::fstream file(newest / "weights", std::ios::in | std::ios::out);
    file.seekp(3);
    file.put('X');
  }
  std::string hint;
  const std::string message = error_of(newest, &hint);
  expect_contains(message, newest.string());
  expect_contains(message, "weights has CRC-32");
  expect_contains(hint, checkpoint_directory(run_, 10).string());
  EXPECT_EQ(resolve_checkpoint(run_), checkpoint_directory(run_, 10));
}

TEST_F(CheckpointTest, TruncatedMissingAndForeignFilesAreNamed) {
  write_step(10);
  const fs::path step = checkpoint_directory(run_, 10);
  fs::resize_file(step / "weights", 4);
  expect_contains(error_of(step), "weights has 4 bytes");
  fs::remove(step / "weights");
  expect_contains(error_of(step), "weights is missing");
  expect_contains(error_of(run_), "holds no intact checkpoint");

  const std::string manifest = read_file(step / "manifest.json");
  write_file_durably(step / "manifest.json", manifest.substr(0, manifest.size() / 2));
  expect_contains(error_of(step), "manifest.json is not the manifest");
  std::string edited = manifest;
  edited.replace(edited.find("\"step\": 10"), 10, "\"step\": 11");
  write_file_durably(step / "manifest.json", edited);
  expect_contains(error_of(step), "manifest.json was changed");
  fs::remove(step / "manifest.json");
  expect_contains(error_of(step), "manifest.json is missing");

  expect_contains(error_of(directory_.path() / "absent"), "does not exist");
  fs::create_directories(directory_.path() / "empty" / "checkpoints");
  expect_contains(error_of(directory_.path() / "empty"), "holds no checkpoint yet");
}

TEST_F(CheckpointTest, WriterThatStopsHalfwayLeavesNothing) {
  write_step(1);
  {
    CheckpointWriter writer(run_, 2);
    write_file_durably(writer.directory() / "weights", "half");
  }
  EXPECT_EQ(list_checkpoints(run_).size(), 1U);
  EXPECT_EQ(std::distance(fs::directory_iterator(run_ / "checkpoints"), fs::directory_iterator()), 1);
}

TEST_F(CheckpointTest, LeftoversOfKilledWritersAreIgnoredAndRemoved) {
  write_step(1);
  for (const char* name : {".writing-step-000002", ".removing-step-000000"}) {
    fs::create_directory(run_ / "checkpoints" / name);
    write_file_durably(run_ / "checkpoints" / name / "weights", "half");
  }
  fs::create_directory(run_ / "checkpoints" / "step-12x");
  EXPECT_EQ(resolve_checkpoint(run_), checkpoint_directory(run_, 1));
  remove_unfinished_checkpoints(run_);
  EXPECT_FALSE(fs::exists(run_ / "checkpoints" / ".writing-step-000002"));
  EXPECT_FALSE(fs::exists(run_ / "checkpoints" / ".removing-step-000000"));
  EXPECT_EQ(list_checkpoints(run_).size(), 1U);
}

TEST_F(CheckpointTest, KeepsTheNewest) {
  for (const std::int64_t step : {1, 2, 3, 4}) write_step(step);
  remove_old_checkpoints(run_, 0);
  EXPECT_EQ(list_checkpoints(run_).size(), 4U);
  remove_old_checkpoints(run_, 2);
  const auto left = list_checkpoints(run_);
  ASSERT_EQ(left.size(), 2U);
  EXPECT_EQ(left.front().step, 3);
  EXPECT_EQ(left.back().step, 4);
}

TEST_F(CheckpointTest, WritingAStepAgainReplacesIt) {
  write_step(5);
  fs::remove(checkpoint_directory(run_, 5) / "weights");
  write_step(5);
  EXPECT_EQ(resolve_checkpoint(run_), checkpoint_directory(run_, 5));
}

TEST_F(CheckpointTest, FullDiskIsOneErrorAndLeavesTheOldStep) {
  write_step(1);
  rlimit old_limit{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old_limit), 0);
  const auto old_handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small{100, old_limit.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);
  std::string message = "no error";
  try {
    CheckpointWriter writer(run_, 2);
    write_file_durably(writer.directory() / "weights", std::string(1000, 'x'));
    writer.commit();
  } catch (const Error& error) {
    message = error.what();
  }
  setrlimit(RLIMIT_FSIZE, &old_limit);
  std::signal(SIGXFSZ, old_handler);
  expect_contains(message, "cannot write");
  expect_contains(message, "File too large");
  EXPECT_EQ(resolve_checkpoint(run_), checkpoint_directory(run_, 1));
  EXPECT_EQ(std::distance(fs::directory_iterator(run_ / "checkpoints"), fs::directory_iterator()), 1);
}

TEST(DurableFileTest, ReplacedFileIsOldOrNew) {
  const TemporaryDirectory directory;
  const fs::path file = directory.path() / "file";
  replace_file(file, "old");
  replace_file(file, "new");
  EXPECT_EQ(read_file(file), "new");
  EXPECT_EQ(std::distance(fs::directory_iterator(directory.path()), fs::directory_iterator()), 1);
  EXPECT_THROW(replace_file(directory.path() / "absent" / "file", "x"), Error);
}

// The check value of CRC-32/ISO-HDLC.
TEST(DurableFileTest, Crc32IsTheCommonOne) { EXPECT_EQ(crc32_of("123456789"), 0xCBF43926U); }

}  // namespace
}  // namespace tda
