#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "cli/command.h"
#include "lm/analysis/analysis.h"
#include "lm/analysis/report_page.h"
#include "lm/analysis/results_table.h"
#include "lm/analysis/training_report.h"

namespace tda {
namespace {

struct ReportRequest {
  std::vector<std::filesystem::path> runs;
  std::optional<std::filesystem::path> text;
  std::filesystem::path output = "report";
};

int run_report_command(const ReportRequest& request) {
  nlohmann::json report;
  if (request.text) {
    AnalysisRequest analysis;
    analysis.checkpoints = request.runs;
    analysis.text = *request.text;
    analysis.output = request.output;
    analysis.version = TDA_VERSION;
    report = analyze(analysis, [](const std::string& line) { fmt::print(stderr, "report: {}\n", line); });
  } else {
    report = training_report(request.runs, TDA_VERSION);
    write_report(request.output, report);
  }
  fmt::print("{}\nwritten: {}, {}\n", results_table(report), (request.output / "analysis.json").string(),
             (request.output / "report.html").string());
  return 0;
}

}  // namespace

void add_report_command(CLI::App& program, Invocation& invocation) {
  auto request = std::make_shared<ReportRequest>();
  CLI::App* command = program.add_subcommand("report", "Draw training runs side by side, on a page of plots");
  command->description(
      "Draws losses, exact zeros and empty rows of every head from what the runs wrote while they trained, finished or "
      "not, into analysis.json and report.html. With --text the same page as `tda analyze`, which runs the models.");
  command->add_option("RUN", request->runs, "Run directories, or step folders of one, which end the curves there")
      ->required();
  command->add_option("--text", request->text, "Plain text on which the models are also measured");
  command->add_option("--output", request->output, "Folder for what is written")->capture_default_str();
  command->callback([request, &invocation] { invocation.run = [request] { return run_report_command(*request); }; });
}

}  // namespace tda
