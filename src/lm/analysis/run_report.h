// Everything the report says about one run, as JSON: one entry of `runs` in analysis.json. Fields: docs/analysis.md.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <memory>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>

#include "lm/data/tokenizer.h"
#include "lm/model/gpt.h"

namespace tda {

struct ReportOptions {
  std::int64_t windows = 16;  // windows of the text over which attention is measured
  std::string sentence;       // empty: the first fitting one of the text
  std::string prompt;         // empty: the first words of the sentence; continued to the end of the context
  // As `tda generate` has them, so that both write the same text.
  double temperature = 0.8;
  std::uint64_t seed = 1337;
};

// A checkpoint opened for analysis.
struct AnalyzedRun {
  std::string name;  // of the run directory, or the mechanism for a step folder that lies elsewhere
  std::filesystem::path step_folder;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<Gpt> model;
};

// `checkpoint` is a step folder or a run directory. fp32 on the CPU. Throws Error on what cannot be read.
AnalyzedRun open_run(const std::filesystem::path& checkpoint);

// `count` windows of min(model context, all of it) tokens, evenly spaced over the tokens of `text`, the first at its
// beginning and the last at its end; fewer when the text has fewer. int64 (N, T). Throws Error for a text of less than
// two tokens.
at::Tensor text_windows(const AnalyzedRun& run, std::string_view text, std::int64_t count);

// Scores `text` as a whole, measures attention on windows of it, takes the maps of one sentence and draws a sample.
nlohmann::json run_report(const AnalyzedRun& run, std::string_view text, const ReportOptions& options);

}  // namespace tda
