// The results of several runs as a table for the terminal.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace tda {

// `report` is what analysis.json holds. One line per run: name, parameters, bits per byte, exact zeros, sink ratio,
// empty rows, training time; then what xz makes of the same text. Ends with a line break.
std::string results_table(const nlohmann::json& report);

}  // namespace tda
