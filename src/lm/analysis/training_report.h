// Runs side by side by what training left behind, without a text: curves, zeros and empty rows of every head,
// parameters, final losses. What a model does on a text of one's own is `analyze` (analysis.h).
#pragma once

#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>

namespace tda {

// One entry of `runs` in analysis.json, of a run directory (all of metrics.jsonl) or one of its step folders (up to
// that step); no weight is read. `parameters` is null while the run has no checkpoint, `statistics` is null before the
// first validation. Fields: docs/analysis.md. Throws Error for anything else, naming what is missing.
nlohmann::json training_run_report(const std::filesystem::path& run);

// What analysis.json holds for these runs: `text` is null. `version` is that of the program.
nlohmann::json training_report(const std::vector<std::filesystem::path>& runs, const std::string& version);

}  // namespace tda
