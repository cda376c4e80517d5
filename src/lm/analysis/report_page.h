// The report as one HTML file that needs no network: data, style, Plotly and the drawing code are all inside.
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>

namespace tda {

// `report` is what analysis.json holds (docs/analysis.md); its strings may hold anything. Bytes that are not UTF-8
// become U+FFFD.
std::string render_report_page(const nlohmann::json& report);

// Writes `report` as analysis.json and as report.html into `folder`, made when absent; each file appears whole or not
// at all. Throws Error when the system refuses.
void write_report(const std::filesystem::path& folder, const nlohmann::json& report);

// As above; Error names the folder.
void create_folder(const std::filesystem::path& folder);

// JSON that may stand inside <script>: no '<', so that no text can close the element or open a comment.
std::string json_for_script(const nlohmann::json& value);

}  // namespace tda
