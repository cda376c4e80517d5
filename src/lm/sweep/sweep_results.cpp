#include "lm/sweep/sweep_results.h"

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>

#include "lm/analysis/report_page.h"
#include "lm/analysis/run_history.h"
#include "lm/analysis/training_report.h"
#include "lm/durable_file.h"

namespace tda {
namespace {

using nlohmann::json;

// RFC 4180.
std::string csv_cell(const std::string& text) {
  if (text.find_first_of(",\"\r\n") == std::string::npos) return text;
  std::string quoted(1, '"');
  for (const char c : text) {
    if (c == '"') quoted.push_back('"');
    quoted.push_back(c);
  }
  quoted.push_back('"');
  return quoted;
}

std::string json_cell(const json& value) {
  if (value.is_null()) return {};
  return value.is_string() ? csv_cell(value.get<std::string>()) : value.dump();
}

bool has_begun(const SweepRun& run) {
  return !read_run_history(run.directory, std::numeric_limits<std::int64_t>::max()).empty();
}

constexpr const char* kColumns[] = {"step", "training_tokens", "train_loss", "val_loss"};

// One line for each run; what it has not measured yet is empty.
std::string results_csv(const std::vector<GridAxis>& axes, const std::vector<SweepRun>& runs,
                        const std::vector<json>& reports) {
  std::vector<std::string> lines(1, "run,status");
  for (const GridAxis& axis : axes) lines[0].append(",").append(axis.key);
  for (const char* column : kColumns) lines[0].append(",").append(column);
  lines[0].append(",sparsity,empty_rows,parameters,seconds");
  for (std::size_t index = 0; index < runs.size(); ++index) {
    const json& report = reports[index];
    std::string line = csv_cell(runs[index].point.name);
    line.append(",").append(runs[index].status);
    for (const RecipeOverride& item : runs[index].point.overrides) line.append(",").append(csv_cell(item.value));
    const auto add = [&](const json& value) { line.append(",").append(json_cell(value)); };
    for (const char* column : kColumns) add(report.value(column, json()));
    const json statistics = report.value("statistics", json());
    for (const char* key : {"sparsity", "empty_rows"}) {
      add(statistics.is_null() ? json() : statistics.at("views").at(0).at("mean").at(key));
    }
    add(report.value("parameters", json()));
    add(report.value("training_seconds", json()));
    lines.push_back(line);
  }
  std::string text;
  for (const std::string& line : lines) text.append(line).append("\n");
  return text;
}

}  // namespace

void write_sweep_results(const std::filesystem::path& output, const std::vector<GridAxis>& axes,
                         const std::vector<SweepRun>& runs, const std::string& version) {
  json begun = json::array();
  std::vector<json> reports;
  for (const SweepRun& run : runs) {
    reports.push_back(json::object());
    if (!has_begun(run)) continue;
    reports.back() = training_run_report(run.directory);
    reports.back()["name"] = run.point.name;
    reports.back()["status"] = run.status;
    for (const RecipeOverride& item : run.point.overrides) reports.back()["grid"][item.name] = item.value;
    begun.push_back(reports.back());
  }
  replace_file(output / "results.csv", results_csv(axes, runs, reports));
  if (begun.empty()) return;
  json grid = json::array();
  for (const GridAxis& axis : axes) grid.push_back({{"key", axis.key}, {"values", axis.values}});
  write_report(output, {{"version", version}, {"text", nullptr}, {"grid", grid}, {"runs", begun}});
}

}  // namespace tda
