#include "lm/analysis/results_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <vector>

namespace tda {
namespace {

using Row = std::vector<std::string>;

// 99.96 % shall not read as 100.
std::string percent(double share) {
  const double value = 100 * share;
  return fmt::format("{:.{}f} %", value, (value > 99.9 && value < 100) || (value > 0 && value < 0.1) ? 3 : 1);
}

Row cells(const nlohmann::json& run) {
  const nlohmann::json& mean = run.at("statistics").at("views").at(0).at("mean");
  const nlohmann::json& seconds = run.at("training_seconds");
  return {run.at("name").get<std::string>(),
          fmt::format("{:.2f} M", 1e-6 * run.at("parameters").get<double>()),
          fmt::format("{:.3f}", run.at("score").at("bits_per_byte").get<double>()),
          percent(mean.at("sparsity").get<double>()),
          fmt::format("{:.2f}", mean.at("sink_ratio").get<double>()),
          percent(mean.at("empty_rows").get<double>()),
          seconds.is_null() ? "-" : fmt::format("{:.0f}", seconds.get<double>())};
}

}  // namespace

std::string results_table(const nlohmann::json& report) {
  std::vector<Row> rows = {
      {"model", "parameters", "bits per byte", "exact zeros", "sink ratio", "empty rows", "seconds"}};
  for (const nlohmann::json& run : report.at("runs")) rows.push_back(cells(run));
  const nlohmann::json& xz = report.at("text").at("xz_bits_per_byte");
  if (!xz.is_null()) rows.push_back({"xz -9e", "-", fmt::format("{:.3f}", xz.get<double>()), "-", "-", "-", "-"});

  std::vector<std::size_t> widths(rows.front().size(), 0);
  for (const Row& row : rows) {
    for (std::size_t column = 0; column < row.size(); ++column) {
      widths[column] = std::max(widths[column], row[column].size());
    }
  }
  std::string table;
  for (const Row& row : rows) {
    table += fmt::format("{:<{}}", row[0], widths[0]);
    for (std::size_t column = 1; column < row.size(); ++column) {
      table += fmt::format("  {:>{}}", row[column], widths[column]);
    }
    table += '\n';
  }
  return table;
}

}  // namespace tda
