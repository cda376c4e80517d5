#include "lm/analysis/analysis.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "lm/analysis/heads_dump.h"
#include "lm/analysis/output_folder.h"
#include "lm/analysis/reference_compression.h"
#include "lm/analysis/report_page.h"
#include "lm/analysis/run_names.h"
#include "lm/durable_file.h"
#include "lm/error.h"
#include "lm/generation/sampler.h"
#include "lm/utf8.h"

namespace tda {
namespace {

void make_names_unique(std::vector<AnalyzedRun>& runs) {
  std::vector<std::string> names;
  names.reserve(runs.size());
  for (const AnalyzedRun& run : runs) names.push_back(run.name);
  names = unique_names(std::move(names));
  for (std::size_t index = 0; index < runs.size(); ++index) runs[index].name = names[index];
}

void require_utf8(const char* option, const std::string& text) {
  if (is_utf8(text)) return;
  throw Error(fmt::format("{} is \"{}\", expected UTF-8: analysis.json could not hold it", option, printable(text)));
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

}  // namespace

nlohmann::json analyze(const AnalysisRequest& request, const std::function<void(const std::string&)>& on_progress) {
  check_sampling({.temperature = request.options.temperature});
  require_utf8("--sentence", request.options.sentence);
  require_utf8("--prompt", request.options.prompt);
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
  const OutputFolder folder(request.output);

  nlohmann::json report = {{"version", request.version}, {"runs", nlohmann::json::array()}};
  for (const AnalyzedRun& run : runs) {
    on_progress(fmt::format("{}: scoring {} bytes, measuring attention, sampling", run.name, text.size()));
    report["runs"].push_back(run_report(run, text, request.options));
  }
  const auto xz = xz_bits_per_byte(text);
  report["text"] = {{"name", request.text.filename().string()},
                    {"bytes", text.size()},
                    {"xz_bits_per_byte", xz ? nlohmann::json(*xz) : nlohmann::json(nullptr)}};

  if (request.dump_layer) {
    for (const AnalyzedRun& run : runs) {
      write_heads(run, text_windows(run, text, request.options.windows), *request.dump_layer, request.output);
    }
  }
  write_report(request.output, report);
  return report;
}

}  // namespace tda
