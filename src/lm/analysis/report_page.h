// The report as one HTML file that needs no network: data, style, Plotly and the drawing code are all inside.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

namespace tda {

// `report` is what analysis.json holds (docs/analysis.md); its strings may hold anything. Bytes that are not UTF-8
// become U+FFFD.
std::string render_report_page(const nlohmann::json& report);

// JSON that may stand inside <script>: no '<', so that no text can close the element or open a comment.
std::string json_for_script(const nlohmann::json& value);

}  // namespace tda
