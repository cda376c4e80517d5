// `tda analyze`: several checkpoints on one text, as analysis.json and as a page.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>

#include "lm/analysis/run_report.h"

namespace tda {

struct AnalysisRequest {
  std::vector<std::filesystem::path> checkpoints;
  std::filesystem::path text;
  std::filesystem::path output = "analysis";  // a folder; made when absent
  std::string version;                        // of the program, for the page
  std::optional<std::int64_t> dump_layer;     // also write the heads of this layer
  ReportOptions options;
};

// Writes analysis.json and report.html into the output folder, and with `dump_layer` NAME-layer-N-qkv.safetensors for
// each run; each file appears whole or not at all. Returns what analysis.json holds. `on_progress` gets one line for
// each stage. Throws Error on bad input, before anything is written.
nlohmann::json analyze(const AnalysisRequest& request, const std::function<void(const std::string&)>& on_progress);

}  // namespace tda
