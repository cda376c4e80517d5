#include "lm/analysis/attention_report.h"

#include <ATen/ATen.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>

namespace tda {
namespace {

double mean(const HeadTable& table) {
  double sum = 0;
  std::size_t count = 0;
  for (const auto& row : table) {
    for (const double value : row) sum += value;
    count += row.size();
  }
  return sum / static_cast<double>(count);
}

// Pictures need no more digits, and the page holds a number for every pair of tokens in every head.
double four_digits(double value) {
  if (value == 0) return 0;
  const double scale = std::pow(10.0, 3 - std::floor(std::log10(std::abs(value))));
  return std::isfinite(scale) ? std::round(value * scale) / scale : value;
}

nlohmann::json lower_triangle(const at::Tensor& map) {
  const at::Tensor values = map.to(at::kDouble).contiguous();
  const auto rows = values.accessor<double, 2>();
  nlohmann::json result = nlohmann::json::array();
  for (std::int64_t i = 0; i < values.size(0); ++i) {
    nlohmann::json row = nlohmann::json::array();
    for (std::int64_t j = 0; j <= i; ++j) {
      const double value = rows[i][j];
      // An integer 0 is one character instead of three, for what is most of a sparse map.
      if (value == 0) {
        row.push_back(0);
      } else {
        row.push_back(four_digits(value));
      }
    }
    result.push_back(std::move(row));
  }
  return result;
}

}  // namespace

nlohmann::json statistics_json(const std::vector<ViewStatistics>& views) {
  nlohmann::json result = nlohmann::json::array();
  for (const ViewStatistics& view : views) {
    const std::pair<const char*, const HeadTable&> tables[] = {{"sparsity", view.sparsity},
                                                               {"empty_rows", view.empty_rows},
                                                               {"survivors_per_row", view.survivors_per_row},
                                                               {"sink_ratio", view.sink_ratio},
                                                               {"effective_entropy", view.effective_entropy}};
    nlohmann::json entry = {{"name", view.name}};
    for (const auto& [key, table] : tables) {
      entry[key] = table;
      entry["mean"][key] = mean(table);
    }
    result.push_back(std::move(entry));
  }
  return result;
}

nlohmann::json maps_json(const std::vector<ViewMaps>& views) {
  nlohmann::json result = nlohmann::json::array();
  for (const ViewMaps& view : views) {
    nlohmann::json layers = nlohmann::json::array();
    for (const at::Tensor& layer : view.maps) {
      nlohmann::json heads = nlohmann::json::array();
      for (std::int64_t head = 0; head < layer.size(0); ++head) heads.push_back(lower_triangle(layer[head]));
      layers.push_back(std::move(heads));
    }
    result.push_back({{"name", view.name}, {"maps", std::move(layers)}});
  }
  return result;
}

}  // namespace tda
