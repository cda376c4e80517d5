// What came of the runs of a sweep: results.csv and the page.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "lm/sweep/grid.h"

namespace tda {

struct SweepRun {
  GridPoint point;
  std::filesystem::path directory;
  std::string status = "waiting";  // waiting, running, stopped, failed, finished
};

// Replaces results.csv, analysis.json and report.html in `output`, each as a whole. Columns and fields: docs/sweep.md.
void write_sweep_results(const std::filesystem::path& output, const std::vector<GridAxis>& axes,
                         const std::vector<SweepRun>& runs, const std::string& version);

}  // namespace tda
