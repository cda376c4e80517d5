// JSON of attention measurements.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <vector>

#include "lm/analysis/attention_measurement.h"

namespace tda {

// [{"name", "sparsity": [layer][head], ..., "mean": {"sparsity": ...}}, ...]
nlohmann::json statistics_json(const std::vector<ViewStatistics>& views);

// [{"name", "maps": [layer][head][row][column <= row]}, ...], four significant digits; a weight that is not zero never
// becomes zero.
nlohmann::json maps_json(const std::vector<ViewMaps>& views);

}  // namespace tda
