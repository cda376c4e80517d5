#include "lm/analysis/results_table.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
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

std::string number(const nlohmann::json& value, int decimals) {
  return value.is_null() ? "-" : fmt::format("{:.{}f}", value.get<double>(), decimals);
}

std::string millions(const nlohmann::json& parameters) {
  return parameters.is_null() ? "-" : fmt::format("{:.2f} M", 1e-6 * parameters.get<double>());
}

Row cells_on_text(const nlohmann::json& run) {
  const nlohmann::json& mean = run.at("statistics").at("views").at(0).at("mean");
  return {run.at("name").get<std::string>(),
          millions(run.at("parameters")),
          number(run.at("score").at("bits_per_byte"), 3),
          percent(mean.at("sparsity").get<double>()),
          number(mean.at("sink_ratio"), 2),
          percent(mean.at("empty_rows").get<double>()),
          number(run.at("training_seconds"), 0)};
}

Row cells_of_training(const nlohmann::json& run) {
  const nlohmann::json& statistics = run.at("statistics");
  const auto share = [&](const char* key) {
    if (statistics.is_null()) return std::string("-");
    return percent(statistics.at("views").at(0).at("mean").at(key).get<double>());
  };
  return {run.at("name").get<std::string>(),
          millions(run.at("parameters")),
          fmt::to_string(run.at("step").get<std::int64_t>()),
          number(run.at("train_loss"), 3),
          number(run.at("val_loss"), 3),
          share("sparsity"),
          share("empty_rows"),
          number(run.at("training_seconds"), 0)};
}

std::vector<Row> rows_on_text(const nlohmann::json& report) {
  std::vector<Row> rows = {
      {"model", "parameters", "bits per byte", "exact zeros", "sink ratio", "empty rows", "seconds"}};
  for (const nlohmann::json& run : report.at("runs")) rows.push_back(cells_on_text(run));
  const nlohmann::json& xz = report.at("text").at("xz_bits_per_byte");
  if (!xz.is_null()) rows.push_back({"xz -9e", "-", number(xz, 3), "-", "-", "-", "-"});
  return rows;
}

std::vector<Row> rows_of_training(const nlohmann::json& report) {
  std::vector<Row> rows = {
      {"model", "parameters", "step", "train loss", "val loss", "exact zeros", "empty rows", "seconds"}};
  for (const nlohmann::json& run : report.at("runs")) rows.push_back(cells_of_training(run));
  return rows;
}

}  // namespace

std::string results_table(const nlohmann::json& report) {
  const std::vector<Row> rows = report.at("text").is_null() ? rows_of_training(report) : rows_on_text(report);
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
