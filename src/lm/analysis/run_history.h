// What a run wrote into metrics.jsonl while it trained.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

namespace tda {

// One line of metrics.jsonl; what was not measured at that step is absent. Losses in nats per token.
struct HistoryEntry {
  std::int64_t step = 0;
  std::int64_t tokens = 0;
  std::optional<double> seconds;
  std::optional<double> train_loss;
  std::optional<double> val_loss;
  std::optional<double> sparsity;    // mean over layers and heads
  std::optional<double> empty_rows;  // mean over layers and heads
  // The same as [layer][head]; empty when it was not measured.
  std::vector<std::vector<double>> sparsity_of_heads, empty_rows_of_heads;
};

// The lines of RUN/metrics.jsonl up to `last_step`, by step. Of several lines of one step (a run that was stopped and
// resumed repeats some) the last counts. Empty when there is no such file. Throws Error, naming the line, when one is
// not an object of the documented form; an unfinished last line is passed over.
std::vector<HistoryEntry> read_run_history(const std::filesystem::path& run_directory, std::int64_t last_step);

// The run directory of a step folder: RUN of RUN/checkpoints/step-000123; nothing for a folder that lies elsewhere.
std::optional<std::filesystem::path> run_directory_of(const std::filesystem::path& step_folder);

// 123 of .../step-000123; nothing for another name.
std::optional<std::int64_t> step_of(const std::filesystem::path& step_folder);

}  // namespace tda
