#include "lm/analysis/run_history.h"

#include <fmt/format.h>

#include <charconv>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "lm/error.h"

namespace tda {
namespace {

constexpr std::string_view kStepPrefix = "step-";

std::optional<double> number(const nlohmann::json& row, const char* key) {
  const auto found = row.find(key);
  if (found == row.end() || found->is_null()) return std::nullopt;
  return found->get<double>();
}

// [layer][head]; empty when there is none.
std::vector<std::vector<double>> table(const nlohmann::json& row, const char* key) {
  const auto found = row.find(key);
  if (found == row.end() || found->is_null()) return {};
  return found->get<std::vector<std::vector<double>>>();
}

std::optional<double> mean(const std::vector<std::vector<double>>& table) {
  double sum = 0;
  std::size_t count = 0;
  for (const auto& layer : table) {
    for (const double value : layer) sum += value;
    count += layer.size();
  }
  if (count == 0) return std::nullopt;
  return sum / static_cast<double>(count);
}

HistoryEntry parse_entry(const nlohmann::json& row) {
  HistoryEntry entry;
  entry.step = row.at("step").get<std::int64_t>();
  entry.tokens = row.at("tokens").get<std::int64_t>();
  entry.seconds = number(row, "seconds");
  entry.train_loss = number(row, "train_loss");
  entry.val_loss = number(row, "val_loss");
  entry.sparsity_of_heads = table(row, "sparsity");
  entry.empty_rows_of_heads = table(row, "empty_rows");
  entry.sparsity = mean(entry.sparsity_of_heads);
  entry.empty_rows = mean(entry.empty_rows_of_heads);
  return entry;
}

}  // namespace

std::vector<HistoryEntry> read_run_history(const std::filesystem::path& run_directory, std::int64_t last_step) {
  const std::filesystem::path file = run_directory / "metrics.jsonl";
  std::ifstream in(file, std::ios::binary);
  if (!in) {
    if (!std::filesystem::exists(file)) return {};
    throw Error(fmt::format("cannot read {}", file.string()));
  }
  std::map<std::int64_t, HistoryEntry> by_step;
  std::string line;
  for (std::int64_t number = 1; std::getline(in, line); ++number) {
    // A writer that was killed leaves its last line without an end.
    if (in.eof()) break;
    try {
      const HistoryEntry entry = parse_entry(nlohmann::json::parse(line));
      by_step[entry.step] = entry;
    } catch (const nlohmann::json::exception& failure) {
      throw Error(fmt::format("{} line {}: {}", file.string(), number, failure.what()),
                  "each line is one JSON object with at least `step` and `tokens`");
    }
  }
  std::vector<HistoryEntry> history;
  for (const auto& [step, entry] : by_step) {
    if (step <= last_step) history.push_back(entry);
  }
  return history;
}

std::optional<std::filesystem::path> run_directory_of(const std::filesystem::path& step_folder) {
  const std::filesystem::path folder = std::filesystem::weakly_canonical(step_folder);
  if (!step_of(folder) || folder.parent_path().filename() != "checkpoints") return std::nullopt;
  return folder.parent_path().parent_path();
}

std::optional<std::int64_t> step_of(const std::filesystem::path& step_folder) {
  const std::string name = std::filesystem::weakly_canonical(step_folder).filename().string();
  if (!name.starts_with(kStepPrefix)) return std::nullopt;
  std::int64_t step = 0;
  const char* last = name.data() + name.size();
  const auto [end, failure] = std::from_chars(name.data() + kStepPrefix.size(), last, step);
  if (failure != std::errc() || end != last) return std::nullopt;
  return step;
}

}  // namespace tda
