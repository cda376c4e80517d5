#include "lm/analysis/training_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>
#include <utility>

#include "lm/analysis/run_history.h"
#include "lm/analysis/run_names.h"
#include "lm/error.h"
#include "lm/model/safetensors.h"
#include "lm/training/checkpoint.h"
#include "lm/training/recipe.h"

namespace tda {
namespace {

namespace fs = std::filesystem;
using nlohmann::json;

struct Source {
  fs::path run;                  // the run directory
  std::optional<fs::path> step;  // a step folder of it, when there is one
  std::int64_t last_step = std::numeric_limits<std::int64_t>::max();
};

Source find_source(const fs::path& path) {
  std::error_code error;
  if (!fs::is_directory(path, error)) {
    throw Error(fmt::format("{}: no such run directory", path.string()), "a run is the --output of `tda train`");
  }
  if (const auto run = run_directory_of(path)) return {*run, path, step_of(path).value()};
  const fs::path run = fs::weakly_canonical(path);
  if (!fs::exists(run / "metrics.jsonl", error) || !fs::exists(run / "recipe.toml", error)) {
    throw Error(fmt::format("{} is no run directory: it holds no {}", path.string(),
                            fs::exists(run / "metrics.jsonl", error) ? "recipe.toml" : "metrics.jsonl"),
                "a run is the --output of `tda train`; for a step folder outside of a run use `tda analyze`");
  }
  const auto checkpoints = list_checkpoints(run);
  return {run, checkpoints.empty() ? std::nullopt : std::optional(checkpoints.back().directory)};
}

// From the header of the weights alone, however large they are.
std::int64_t count_parameters(const fs::path& step_folder) {
  std::int64_t count = 0;
  const SafetensorsFile weights(step_folder / "model.safetensors");
  for (const auto& [name, entry] : weights.entries()) {
    std::int64_t size = 1;
    for (const std::int64_t length : entry.shape) size *= length;
    count += size;
  }
  return count;
}

json optional_json(const std::optional<double>& value) { return value ? json(*value) : json(nullptr); }

json history_json(const std::vector<HistoryEntry>& history) {
  json rows = json::array();
  for (const HistoryEntry& entry : history) {
    json row = {{"step", entry.step}, {"tokens", entry.tokens}};
    if (entry.train_loss) row["train_loss"] = *entry.train_loss;
    if (entry.val_loss) row["val_loss"] = *entry.val_loss;
    if (entry.sparsity) row["sparsity"] = *entry.sparsity;
    if (entry.empty_rows) row["empty_rows"] = *entry.empty_rows;
    rows.push_back(std::move(row));
  }
  return rows;
}

// In the form that `analyze` gives its own measurements.
json statistics_json(const HistoryEntry& entry) {
  return {{"step", entry.step},
          {"views",
           {{{"name", "effective"},
             {"sparsity", entry.sparsity_of_heads},
             {"empty_rows", entry.empty_rows_of_heads},
             {"mean", {{"sparsity", *entry.sparsity}, {"empty_rows", *entry.empty_rows}}}}}}};
}

}  // namespace

json training_run_report(const fs::path& path) {
  const Source source = find_source(path);
  const Recipe recipe = load_recipe(source.run / "recipe.toml").values;
  const std::vector<HistoryEntry> history = read_run_history(source.run, source.last_step);
  if (history.empty()) throw Error(fmt::format("{}: metrics.jsonl holds no step yet", path.string()));
  const auto newest = [&](auto&& has) { return std::find_if(history.rbegin(), history.rend(), has); };
  const auto value = [&](auto member) {
    const auto entry = newest([&](const HistoryEntry& one) { return (one.*member).has_value(); });
    return entry == history.rend() ? std::nullopt : (*entry).*member;
  };
  const auto measured =
      newest([](const HistoryEntry& one) { return one.sparsity.has_value() && one.empty_rows.has_value(); });

  json report = {{"name", source.run.filename().string()},
                 {"mechanism", recipe.model.mechanism},
                 {"checkpoint", source.step ? json(source.step->string()) : json(nullptr)},
                 {"step", history.back().step},
                 {"parameters", source.step ? json(count_parameters(*source.step)) : json(nullptr)},
                 {"config", recipe.model.to_json()},
                 {"training_seconds", optional_json(value(&HistoryEntry::seconds))},
                 {"training_tokens", history.back().tokens},
                 {"train_loss", optional_json(value(&HistoryEntry::train_loss))},
                 {"val_loss", optional_json(value(&HistoryEntry::val_loss))},
                 {"history", history_json(history)}};
  report["statistics"] = measured == history.rend() ? json(nullptr) : statistics_json(*measured);
  return report;
}

json training_report(const std::vector<fs::path>& runs, const std::string& version) {
  std::vector<json> reports;
  std::vector<std::string> names;
  for (const fs::path& run : runs) {
    reports.push_back(training_run_report(run));
    names.push_back(reports.back().at("name").get<std::string>());
  }
  names = unique_names(std::move(names));
  for (std::size_t index = 0; index < reports.size(); ++index) reports[index]["name"] = names[index];
  return {{"version", version}, {"text", nullptr}, {"runs", reports}};
}

}  // namespace tda
