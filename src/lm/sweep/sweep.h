// `tda sweep`: one run for each point of a grid, several at a time, and what came of them.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

namespace tda {

struct SweepRequest {
  std::filesystem::path recipe;
  std::vector<std::string> grid;  // "section.key=a,b,…"
  int jobs = 1;                   // runs at a time
  std::filesystem::path output;
  std::string version;  // of the program, for the page
};

// Trains DIR/runs/NAME for each point, logs in DIR/logs, and keeps DIR/results.csv, analysis.json and report.html up to
// date. Called again it goes on: finished runs are not repeated, interrupted ones resume. Returns the exit code: 0; 1
// when a run failed (the others are done nevertheless); 130 or 143 after SIGINT or SIGTERM, when every run has written
// its checkpoint. Throws Error on bad input, before anything is written.
int sweep(const SweepRequest& request);

}  // namespace tda
