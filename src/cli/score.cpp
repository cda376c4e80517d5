#include <fmt/format.h>

#include <cmath>
#include <filesystem>
#include <iostream>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <stdexcept>
#include <string>

#include "cli/command.h"
#include "lm/data/tokenizer.h"
#include "lm/durable_file.h"
#include "lm/error.h"
#include "lm/evaluation/score.h"
#include "lm/model/model_files.h"
#include "lm/training/checkpoint.h"

namespace tda {
namespace {

struct ScoreOptions {
  std::filesystem::path checkpoint;
  std::filesystem::path input;
  std::optional<std::filesystem::path> output;
  std::string precision = "fp32";
};

// Scores would take the place of the text.
void require_other_file(const std::filesystem::path& output, const std::filesystem::path& input) {
  std::error_code error;  // a file that does not exist is another one
  if (!std::filesystem::is_regular_file(output, error) || !std::filesystem::equivalent(input, output, error)) return;
  throw Error(fmt::format("--output {} is the input itself", output.string()), "choose another --output");
}

int run_score(const ScoreOptions& options) {
  const Precision precision = parse_precision(options.precision);
  if (options.output) {
    require_other_file(*options.output, options.input);
    require_writable(*options.output);
  }
  const std::string text = read_file(options.input);
  if (text.empty())
    throw Error(fmt::format("{}: the file is empty, there is nothing to score", options.input.string()));
  const auto folder = resolve_checkpoint(options.checkpoint);
  const auto tokenizer = load_tokenizer(folder);
  const auto model = load_model(folder);
  model->set_precision(precision);

  std::string lines;
  const auto write_line = [&](const TokenScore& token) {
    lines +=
        fmt::format("{{\"token\": {}, \"logprob\": {}, \"greedy\": {}}}\n", token.token, token.logprob, token.greedy);
  };
  const auto summary = score(*model, tokenizer->encode(text), tokenizer->end_of_text(),
                             options.output ? write_line : std::function<void(const TokenScore&)>());
  // JSON has no way to write such a number.
  if (!std::isfinite(summary.loss())) {
    throw std::runtime_error(fmt::format("{}: the loss of the text is not finite", folder.string()));
  }
  if (options.output) replace_file(*options.output, lines);

  const auto bytes = static_cast<std::int64_t>(text.size());
  nlohmann::ordered_json result;
  result["tokens"] = summary.tokens;
  result["bytes"] = bytes;
  result["loss"] = summary.loss();
  result["perplexity"] = summary.perplexity();
  result["bits_per_byte"] = summary.bits_per_byte(bytes);
  std::cout << result.dump() << '\n';
  return 0;
}

}  // namespace

void add_score_command(CLI::App& program, Invocation& invocation) {
  auto options = std::make_shared<ScoreOptions>();
  CLI::App* command = program.add_subcommand("score", "Measure how well a model predicts a text");
  command->description(
      "Puts end-of-text before the text, predicts every token once in disjoint windows of the model's context, and "
      "prints tokens, bytes, loss (nats per token), perplexity and bits per byte as JSON. All of the text is ordinary "
      "text, <|endoftext|> included.");
  command->add_option("CHECKPOINT", options->checkpoint, "Step folder, or run directory for its newest step")
      ->required();
  command->add_option("--input", options->input, "Text file")->required();
  command->add_option("--output", options->output, "One JSON line per token: token, logprob, greedy");
  command->add_option("--precision", options->precision, "fp32 or bf16")->capture_default_str();
  command->callback([options, &invocation] { invocation.run = [options] { return run_score(*options); }; });
}

}  // namespace tda
