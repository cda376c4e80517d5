#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <memory>

#include "cli/command.h"
#include "lm/data/dataset_preparation.h"
#include "lm/training/stop_signal.h"

namespace tda {
namespace {

struct Stopped {};

/// A line on standard error: rewritten in place on a terminal, once in ten seconds elsewhere.
class ProgressLine {
 public:
  void update(const PreparationProgress& progress) {
    const auto now = std::chrono::steady_clock::now();
    const auto pause = on_terminal_ ? std::chrono::milliseconds(200) : std::chrono::seconds(10);
    if (now - last_ < pause) return;
    last_ = now;
    print(progress, on_terminal_ ? "\r" : "", on_terminal_ ? "" : "\n");
  }
  void finish(const PreparationProgress& progress) { print(progress, on_terminal_ ? "\r" : "", "\n"); }

 private:
  void print(const PreparationProgress& progress, const char* begin, const char* end) const {
    const double megabytes = 1e-6 * static_cast<double>(progress.text_bytes);
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start_;
    fmt::print(stderr, "{}prepare: {:.1f} MB of text, {} documents, {} tokens, {:.1f} MB/s{}", begin, megabytes,
               progress.documents, progress.tokens, megabytes / std::max(seconds.count(), 1e-3), end);
    std::fflush(stderr);
  }

  bool on_terminal_ = isatty(STDERR_FILENO) != 0;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::chrono::steady_clock::time_point last_ = start_;
};

int run_prepare(const DatasetPreparation& preparation) {
  const StopSignal stop;
  ProgressLine line;
  PreparationProgress last;
  try {
    const DatasetDescription dataset = prepare_dataset(preparation, [&](const PreparationProgress& progress) {
      if (StopSignal::requested() != 0) throw Stopped{};
      line.update(progress);
      last = progress;
    });
    line.finish(last);
    fmt::print("{}: {} training tokens, {} validation tokens, {} documents, {} tokenizer\n",
               preparation.output.string(), dataset.train_tokens, dataset.validation_tokens, dataset.documents,
               dataset.tokenizer);
  } catch (const Stopped&) {
    fmt::print(stderr, "\nstopped; nothing was written\n");
    return 128 + StopSignal::requested();
  }
  return 0;
}

}  // namespace

void add_data_command(CLI::App& program, Invocation& invocation) {
  CLI::App* data = program.add_subcommand("data", "Make datasets");
  data->require_subcommand(0, 1);
  auto preparation = std::make_shared<DatasetPreparation>();
  CLI::App* prepare = data->add_subcommand("prepare", "Turn text into a dataset: token shards and dataset.json");
  prepare->add_option("--tokenizer", preparation->tokenizer, "byte or gpt2")->required();
  prepare->add_option("--input", preparation->inputs, "Training text: plain, .xz, .gz or .zst")->required();
  prepare->add_option("--output", preparation->output, "Folder to make; must not exist or be empty")->required();
  prepare->add_option("--validation", preparation->validation, "Held-out text: plain, .xz, .gz or .zst");
  prepare->add_option("--validation-fraction", preparation->validation_fraction,
                      "Share of the training text, at its end, to hold out instead");
  prepare->add_option("--vocabulary", preparation->vocabulary,
                      "Ranks of gpt2: a .tiktoken file, or a folder with vocab.bpe and encoder.json");
  prepare->add_option("--shard-tokens", preparation->shard_tokens, "Most tokens in one shard")->capture_default_str();
  prepare->footer("A line that is exactly <|endoftext|> ends a document, and so does the end of a file.");
  prepare->callback(
      [preparation, &invocation] { invocation.run = [preparation] { return run_prepare(*preparation); }; });
}

}  // namespace tda
