#include "lm/analysis/analysis.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "lm/analysis/heads_dump.h"
#include "lm/analysis/reference_compression.h"
#include "lm/analysis/report_page.h"
#include "lm/durable_file.h"
#include "lm/error.h"
#include "lm/generation/sampler.h"

namespace tda {
namespace {

// Runs of the same name get their place in the list behind it.
void make_names_unique(std::vector<AnalyzedRun>& runs) {
  std::vector<std::string> names;
  for (const AnalyzedRun& run : runs) names.push_back(run.name);
  for (std::size_t index = 0; index < runs.size(); ++index) {
    if (std::count(names.begin(), names.end(), names[index]) > 1) runs[index].name += fmt::format(" ({})", index + 1);
  }
}

void write_heads(const AnalyzedRun& run, const at::Tensor& windows, std::int64_t layer,
                 const std::filesystem::path& output) {
  const std::filesystem::path file = output / fmt::format("{}-layer-{}-qkv.safetensors", run.name, layer);
  std::filesystem::path partial = file;
  partial += ".partial";
  try {
    dump_heads(*run.model, windows, layer, partial);
    std::filesystem::rename(partial, file);
  } catch (...) {
    std::error_code ignored;
    std::filesystem::remove(partial, ignored);
    throw;
  }
}

void create_folder(const std::filesystem::path& folder) {
  std::error_code failure;
  std::filesystem::create_directories(folder, failure);
  if (failure) throw Error(fmt::format("cannot make the folder {}: {}", folder.string(), failure.message()));
}

}  // namespace

nlohmann::json analyze(const AnalysisRequest& request, const std::function<void(const std::string&)>& on_progress) {
  check_sampling({.temperature = request.options.temperature});
  const std::string text = read_file(request.text);
  std::vector<AnalyzedRun> runs;
  for (const std::filesystem::path& checkpoint : request.checkpoints) {
    runs.push_back(open_run(checkpoint));
    const std::int64_t layers = runs.back().model->config().layers;
    if (request.dump_layer && (*request.dump_layer < 0 || *request.dump_layer >= layers)) {
      throw Error(fmt::format("--dump-qkv {}: {} has the layers 0 to {}", *request.dump_layer, checkpoint.string(),
                              layers - 1));
    }
  }
  make_names_unique(runs);

  nlohmann::json report = {{"version", request.version}, {"runs", nlohmann::json::array()}};
  for (const AnalyzedRun& run : runs) {
    on_progress(fmt::format("{}: scoring {} bytes, measuring attention, sampling", run.name, text.size()));
    report["runs"].push_back(run_report(run, text, request.options));
  }
  const auto xz = xz_bits_per_byte(text);
  report["text"] = {{"name", request.text.filename().string()},
                    {"bytes", text.size()},
                    {"xz_bits_per_byte", xz ? nlohmann::json(*xz) : nlohmann::json(nullptr)}};

  create_folder(request.output);
  if (request.dump_layer) {
    for (const AnalyzedRun& run : runs) {
      write_heads(run, text_windows(run, text, request.options.windows), *request.dump_layer, request.output);
    }
  }
  const auto invalid_utf8 = nlohmann::json::error_handler_t::replace;
  replace_file(request.output / "analysis.json", report.dump(-1, ' ', false, invalid_utf8) + "\n");
  replace_file(request.output / "report.html", render_report_page(report));
  return report;
}

}  // namespace tda
