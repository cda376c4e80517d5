#include "lm/data/dataset.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <vector>

#include "lm/data/dataset_preparation.h"
#include "temporary_folder.h"

namespace tda {
namespace {

namespace fs = std::filesystem;

std::vector<int64_t> tokens_of(const TokenStream& stream) {
  std::vector<int64_t> tokens(static_cast<size_t>(stream.size()));
  stream.copy(0, stream.size(), tokens.data());
  return tokens;
}

std::vector<int64_t> tokens_of_documents(const std::vector<std::string>& documents) {
  std::vector<int64_t> tokens;
  for (const std::string& document : documents) {
    tokens.push_back(256);
    for (const char byte : document) tokens.push_back(static_cast<unsigned char>(byte));
  }
  return tokens;
}

class DatasetTest : public testing::Test {
 protected:
  DatasetPreparation preparation(const std::string& text) const {
    DatasetPreparation result;
    result.tokenizer = "byte";
    result.inputs = {folder_.write("text.txt", text)};
    result.output = folder_ / "out";
    return result;
  }
  static DatasetDescription prepare(const DatasetPreparation& what) {
    return prepare_dataset(what, [](const auto&) {});
  }
  // Nothing but the inputs may be left behind by a preparation that failed.
  void expect_nothing_written() const {
    for (const auto& entry : fs::directory_iterator(folder_.path())) EXPECT_EQ(entry.path().extension(), ".txt");
  }
  fs::path write_shard(const std::string& name, const std::vector<int32_t>& ids) const {
    TokenShardWriter writer(folder_ / name);
    writer.append(ids);
    writer.close();
    return folder_ / name;
  }

  TemporaryFolder folder_;
};

TEST_F(DatasetTest, EndOfTextStandsBeforeEachDocument) {
  auto what = preparation("one\n<|endoftext|>\ntwo\n<|endoftext|>\n");
  what.inputs.push_back(folder_.write("more.txt", "three"));
  what.validation = {folder_.write("held.txt", "four <|endoftext|>\n")};
  const DatasetDescription description = prepare(what);
  const Dataset dataset(what.output);
  EXPECT_EQ(tokens_of(dataset.train()), tokens_of_documents({"one\n", "two\n", "three"}));
  EXPECT_EQ(tokens_of(dataset.validation()), tokens_of_documents({"four <|endoftext|>\n"}));
  EXPECT_EQ(description.documents, 4);
  EXPECT_EQ(dataset.description().documents, 4);
  EXPECT_EQ(dataset.description().train_tokens, 16);
  EXPECT_EQ(dataset.description().validation_tokens, 20);
  EXPECT_EQ(dataset.tokenizer()->name(), "byte");
}

TEST_F(DatasetTest, ShardsAreFilledOneAfterTheOther) {
  auto what = preparation("abcdefghij");
  what.shard_tokens = 4;
  prepare(what);
  for (const int number : {0, 1, 2}) {
    const TokenShard shard(what.output / ("train_00000" + std::to_string(number) + ".bin"));
    EXPECT_EQ(shard.size(), number < 2 ? 4 : 3);
  }
  EXPECT_EQ(tokens_of(Dataset(what.output).train()), tokens_of_documents({"abcdefghij"}));
}

TEST_F(DatasetTest, HoldsOutTheLastDocuments) {
  // 30 bytes of text; a third begins within document 2, so documents 3 and 4 are held out.
  auto what = preparation("");
  what.inputs = {
      folder_.write("text.txt", "123456789\n<|endoftext|>\n123456789\n<|endoftext|>\n1234\n<|endoftext|>\n1234\n")};
  what.validation_fraction = 0.35;
  prepare(what);
  const Dataset dataset(what.output);
  EXPECT_EQ(tokens_of(dataset.train()), tokens_of_documents({"123456789\n", "123456789\n"}));
  EXPECT_EQ(tokens_of(dataset.validation()), tokens_of_documents({"1234\n", "1234\n"}));
}

TEST_F(DatasetTest, DividesALongLastDocumentAtALine) {
  auto what = preparation("1\n<|endoftext|>\n23456\n89\n12\n45\n78\n");
  what.validation_fraction = 0.3;  // of 20 bytes: from byte 14, whose line begins at 14
  prepare(what);
  const Dataset dataset(what.output);
  EXPECT_EQ(tokens_of(dataset.train()), tokens_of_documents({"1\n", "23456\n89\n12\n"}));
  EXPECT_EQ(tokens_of(dataset.validation()), tokens_of_documents({"45\n78\n"}));
  EXPECT_EQ(dataset.description().documents, 3);
}

TEST_F(DatasetTest, RefusesEmptyText) {
  for (const std::string text : {"", "<|endoftext|>\n<|endoftext|>\n"}) {
    const std::string message = error_of([&] { prepare(preparation(text)); });
    EXPECT_EQ(message, "no training text: " + (folder_ / "text.txt").string() + " gives no token");
    expect_nothing_written();
  }
  auto what = preparation("text");
  what.validation = {folder_.write("empty.txt", "")};
  EXPECT_NE(error_of([&] { prepare(what); }).find("no validation text"), std::string::npos);
  what.validation.clear();
  what.validation_fraction = 0.5;  // a single line cannot be divided
  EXPECT_NE(error_of([&] { prepare(what); }).find("no validation text"), std::string::npos);
  expect_nothing_written();
}

TEST_F(DatasetTest, RefusesWrongRequests) {
  auto what = preparation("text\ntext\n");
  for (const double fraction : {-0.1, 1.0, 2.0, std::nan("")}) {
    what.validation_fraction = fraction;
    EXPECT_NE(error_of([&] { prepare(what); }).find("validation fraction"), std::string::npos);
  }
  what.validation_fraction = 0.5;
  what.validation = what.inputs;
  error_of([&] { prepare(what); });
  what = preparation("text");
  what.inputs.push_back(folder_ / "missing.txt");
  EXPECT_EQ(error_of([&] { prepare(what); }),
            "cannot read " + (folder_ / "missing.txt").string() + ": No such file or directory");
  what.inputs.pop_back();
  for (const int64_t tokens : {int64_t{0}, kMaximumShardTokens + 1}) {
    what.shard_tokens = tokens;
    error_of([&] { prepare(what); });
  }
  expect_nothing_written();
}

TEST_F(DatasetTest, NeverWritesIntoAFolderWithFiles) {
  const auto what = preparation("text");
  fs::create_directory(what.output);
  prepare(what);  // an empty folder is taken
  const std::string before = content_of(what.output / "train_000000.bin");
  EXPECT_NE(error_of([&] { prepare(what); }).find("not an empty folder"), std::string::npos);
  EXPECT_EQ(content_of(what.output / "train_000000.bin"), before);
}

TEST_F(DatasetTest, AnExceptionFromProgressLeavesNothing) {
  EXPECT_THROW(prepare_dataset(preparation("text"), [](const auto&) { throw 1; }), int);
  expect_nothing_written();
}

TEST_F(DatasetTest, ShardsOfLlmCNeedNoDescription) {
  write_shard("edu_fineweb_val_000000.bin", {50256, 1});
  write_shard("edu_fineweb_train_000002.bin", {4, 5});
  write_shard("edu_fineweb_train_000001.bin", {50256, 2, 3});
  for (const char* name : {"notes.txt", "train_.bin", "train_000001.bin.part", "mytrain_000001.bin", "train_1a.bin"}) {
    folder_.write(name, "no shard");
  }
  const Dataset dataset(folder_.path());
  EXPECT_EQ(tokens_of(dataset.train()), (std::vector<int64_t>{50256, 2, 3, 4, 5}));
  EXPECT_EQ(tokens_of(dataset.validation()), (std::vector<int64_t>{50256, 1}));
  EXPECT_EQ(dataset.description().tokenizer, "gpt2");
  EXPECT_EQ(dataset.description().end_of_text, 50256);
  EXPECT_EQ(dataset.description().train_tokens, 5);
}

TEST_F(DatasetTest, RefusesFoldersThatContradictThemselves) {
  auto what = preparation("abcdefghij");
  what.shard_tokens = 4;
  prepare(what);
  const fs::path description = what.output / "dataset.json";
  const std::string good = content_of(description);
  fs::remove(what.output / "train_000001.bin");
  EXPECT_EQ(error_of([&] { Dataset dataset(what.output); }),
            description.string() + ": train_tokens is 11, but the shards beside it hold 7 tokens");
  for (const std::string bad : {"", "{", "[]", "{}", R"({"tokenizer": 1})"}) {
    std::ofstream(description) << bad;
    EXPECT_EQ(error_of([&] { Dataset dataset(what.output); }).rfind(description.string(), 0), 0U);
  }
  auto json = nlohmann::json::parse(good);
  json["vocabulary_size"] = 100;
  std::ofstream(description) << json;
  EXPECT_NE(error_of([&] { Dataset dataset(what.output); }).find("has id 256, expected less than 100"),
            std::string::npos);
  error_of([&] { Dataset dataset(folder_ / "missing"); });
  const TemporaryFolder empty;
  EXPECT_NE(error_of([&] { Dataset dataset(empty.path()); }).find("has no shard train_*.bin"), std::string::npos);
}

}  // namespace
}  // namespace tda
