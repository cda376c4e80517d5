#include "lm/data/dataset_preparation.h"

#include <fmt/format.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

#include "lm/data/document_splitter.h"
#include "lm/data/split_writer.h"
#include "lm/data/text_encoder.h"
#include "lm/data/text_source.h"
#include "lm/durable_file.h"
#include "lm/error.h"
#include "lm/staged_folder.h"

namespace tda {
namespace {

namespace fs = std::filesystem;

constexpr size_t kChunkBytes = size_t{1} << 18;

/// Feeds all of a file to `splitter`, calling `after_chunk` between parts.
void read_documents(const fs::path& path, DocumentSplitter& splitter, const std::function<void()>& after_chunk) {
  const auto source = open_text(path);
  std::vector<char> chunk(kChunkBytes);
  while (const size_t size = source->read(chunk)) {
    splitter.append({chunk.data(), size});
    after_chunk();
  }
  splitter.finish();
}

/// Where held-out text begins, in bytes of document text.
struct HoldOut {
  int64_t from = INT64_MAX;
  bool within_document = false;  // no document begins at or after `from`: divide at a line
};

HoldOut find_hold_out(const DatasetPreparation& preparation) {
  if (preparation.validation_fraction == 0) return {};
  int64_t bytes = 0;
  int64_t document_begin = 0;
  int64_t last_document_begin = 0;
  DocumentSplitter splitter([&](std::string_view text) { bytes += static_cast<int64_t>(text.size()); },
                            [&] { last_document_begin = std::exchange(document_begin, bytes); });
  for (const fs::path& path : preparation.inputs) {
    if (!fs::is_regular_file(path) && fs::exists(path)) {
      throw Error(fmt::format("{} is no regular file: a share of it cannot be held out", path.string()),
                  "--validation-fraction reads the text twice; give a file, or --validation");
    }
    read_documents(path, splitter, [] {});
  }
  const auto from = static_cast<int64_t>(std::ceil(static_cast<double>(bytes) * (1 - preparation.validation_fraction)));
  return {from, last_document_begin < from};
}

/// Takes the documents of one split after the other into its shards.
class DatasetWriter {
 public:
  DatasetWriter(const Tokenizer& tokenizer, const fs::path& directory, const DatasetPreparation& preparation,
                HoldOut hold_out)
      : train_(directory, "train", preparation.shard_tokens),
        validation_(directory, "val", preparation.shard_tokens),
        split_(&train_),
        hold_out_(hold_out),
        end_of_text_(tokenizer.end_of_text()),
        encoder_(tokenizer, [this](std::span<const int32_t> ids) { split_->append(ids); }) {}

  void append(std::string_view text) {
    const bool line_begins = !in_document_ || last_byte_ == '\n';
    const bool may_divide = !in_document_ || (hold_out_.within_document && line_begins);
    if (split_ == &train_ && progress_.text_bytes >= hold_out_.from && may_divide) {
      if (in_document_) end_document();
      split_ = &validation_;
    }
    if (!in_document_) {
      split_->append({&end_of_text_, 1});
      in_document_ = true;
    }
    encoder_.append(text);
    last_byte_ = text.back();
    progress_.text_bytes += static_cast<int64_t>(text.size());
  }

  void end_document() {
    encoder_.finish();
    in_document_ = false;
    ++progress_.documents;
  }

  void begin_validation() { split_ = &validation_; }

  void close() {
    train_.close();
    validation_.close();
  }

  PreparationProgress progress() const {
    return {progress_.text_bytes, train_.count() + validation_.count(), progress_.documents};
  }
  int64_t train_tokens() const { return train_.count(); }
  int64_t validation_tokens() const { return validation_.count(); }

 private:
  SplitWriter train_;
  SplitWriter validation_;
  SplitWriter* split_;
  HoldOut hold_out_;
  int32_t end_of_text_;
  TextEncoder encoder_;
  bool in_document_ = false;
  char last_byte_ = '\n';
  PreparationProgress progress_;
};

void expect_tokens(int64_t count, const char* what, const fs::path& first, size_t files) {
  if (count > 0) return;
  const std::string more = files > 1 ? fmt::format(" and {} more", files - 1) : "";
  throw Error(fmt::format("no {} text: {}{} gives no token", what, first.string(), more),
              "the text is empty, too short for the share to hold out, or holds only <|endoftext|> lines");
}

void write_description(const fs::path& path, const DatasetDescription& description,
                       const nlohmann::ordered_json& sources, double validation_fraction) {
  const nlohmann::ordered_json json = {
      {"tokenizer", description.tokenizer},          {"vocabulary_size", description.vocabulary_size},
      {"end_of_text", description.end_of_text},      {"train_tokens", description.train_tokens},
      {"val_tokens", description.validation_tokens}, {"documents", description.documents},
      {"validation_fraction", validation_fraction},  {"sources", sources},
  };
  write_file_durably(path, json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

void validate(const DatasetPreparation& preparation) {
  if (preparation.inputs.empty()) throw Error("no input text is given");
  const double fraction = preparation.validation_fraction;
  if (!(fraction >= 0 && fraction < 1)) {
    throw Error(fmt::format("validation fraction is {}, expected at least 0 and less than 1", fraction));
  }
  if (fraction > 0 && !preparation.validation.empty()) {
    throw Error("validation files and a validation fraction exclude each other");
  }
  if (preparation.shard_tokens < 1 || preparation.shard_tokens > kMaximumShardTokens) {
    throw Error(
        fmt::format("shard size is {} tokens, expected 1 to {}", preparation.shard_tokens, kMaximumShardTokens));
  }
}

}  // namespace

DatasetDescription prepare_dataset(const DatasetPreparation& preparation,
                                   const std::function<void(const PreparationProgress&)>& report) {
  validate(preparation);
  const auto tokenizer = make_tokenizer(preparation.tokenizer, preparation.vocabulary);
  StagedFolder folder(preparation.output);
  const HoldOut hold_out = find_hold_out(preparation);
  DatasetWriter writer(*tokenizer, folder.directory(), preparation, hold_out);
  DocumentSplitter splitter([&](std::string_view text) { writer.append(text); }, [&] { writer.end_document(); });
  nlohmann::ordered_json sources = nlohmann::json::array();
  const auto take = [&](const fs::path& path, const char* use) {
    const int64_t before = writer.progress().text_bytes;
    read_documents(path, splitter, [&] { report(writer.progress()); });
    sources.push_back({{"path", path.string()}, {"use", use}, {"bytes", writer.progress().text_bytes - before}});
  };
  for (const fs::path& path : preparation.inputs) take(path, "train");
  expect_tokens(writer.train_tokens(), "training", preparation.inputs[0], preparation.inputs.size());
  writer.begin_validation();
  for (const fs::path& path : preparation.validation) take(path, "validation");
  if (!preparation.validation.empty()) {
    expect_tokens(writer.validation_tokens(), "validation", preparation.validation[0], preparation.validation.size());
  } else if (preparation.validation_fraction > 0) {
    expect_tokens(writer.validation_tokens(), "validation", preparation.inputs[0], preparation.inputs.size());
  }
  writer.close();
  report(writer.progress());
  DatasetDescription description{tokenizer->name(),     tokenizer->vocabulary_size(), tokenizer->end_of_text(),
                                 writer.train_tokens(), writer.validation_tokens(),   writer.progress().documents};
  tokenizer->save(folder.directory());
  write_description(folder.directory() / "dataset.json", description, sources, preparation.validation_fraction);
  folder.commit();
  return description;
}

}  // namespace tda
