#include <fmt/format.h>

#include <cstdio>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/command.h"
#include "lm/analysis/analysis.h"
#include "lm/analysis/results_table.h"

namespace tda {
namespace {

int run_analyze(const AnalysisRequest& request) {
  const nlohmann::json report =
      analyze(request, [](const std::string& line) { fmt::print(stderr, "analyze: {}\n", line); });
  fmt::print("{}", results_table(report));
  for (const nlohmann::json& run : report.at("runs")) {
    const nlohmann::json& sample = run.at("sample");
    const std::string prompt = sample.at("prompt").get<std::string>();
    fmt::print("\n{} continues \"{}\":\n{}{}\n", run.at("name").get<std::string>(), prompt, prompt,
               sample.at("text").get<std::string>());
  }
  fmt::print("\nwritten: {}, {}\n", (request.output / "analysis.json").string(),
             (request.output / "report.html").string());
  return 0;
}

}  // namespace

void add_analyze_command(CLI::App& program, Invocation& invocation) {
  auto request = std::make_shared<AnalysisRequest>();
  request->version = TDA_VERSION;
  ReportOptions& options = request->options;
  CLI::App* command = program.add_subcommand("analyze", "Look into the attention of models, on a page of plots");
  command->description(
      "Scores the text, measures sparsity, empty rows, sinks and entropy of every head on it, and writes analysis.json "
      "and report.html. Several checkpoints stand side by side.");
  command->add_option("CHECKPOINT", request->checkpoints, "Step folders, or run directories for their newest step")
      ->required();
  command->add_option("--text", request->text, "Plain text that the models were not trained on")->required();
  command->add_option("--output", request->output, "Folder for what is written")->capture_default_str();
  command->add_option("--windows", options.windows, "Windows of the text over which attention is measured")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--sentence", options.sentence, "Sentence for the attention map; left out: one of the text");
  command->add_option("--prompt", options.prompt, "Prompt for the sample; left out: the sentence's first words");
  command->add_option("--temperature", options.temperature, "Of the sample; 0 is greedy")->capture_default_str();
  command->add_option("--seed", options.seed, "Of the sample")->capture_default_str();
  command->add_option("--dump-qkv", request->dump_layer,
                      "Also write q, k and v of this layer on the windows, after RoPE and before the L2 norm, as "
                      "safetensors");
  command->callback([request, &invocation] { invocation.run = [request] { return run_analyze(*request); }; });
}

}  // namespace tda
