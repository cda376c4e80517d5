// The results of several runs as a table for the terminal.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace tda {

// `report` is what analysis.json holds. One line per run: name, parameters, bits per byte, exact zeros, sink ratio,
// empty rows, training time; then what xz makes of the same text. Of runs without a text (training_report.h) steps and
// losses (nats per token) stand in place of bits and sinks. Ends with a line break.
std::string results_table(const nlohmann::json& report);

}  // namespace tda
