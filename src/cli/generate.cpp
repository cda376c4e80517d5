#include <fmt/format.h>

#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "lm/data/tokenizer.h"
#include "lm/generation/generate.h"
#include "lm/model/model_files.h"
#include "lm/training/checkpoint.h"

namespace tda {
namespace {

struct GenerateOptions {
  std::filesystem::path checkpoint;
  std::string prompt;
  std::string precision = "fp32";
  GenerationOptions generation;
};

int run_generate(const GenerateOptions& options) {
  const Precision precision = parse_precision(options.precision);
  check_sampling(options.generation.sampling);
  const auto folder = resolve_checkpoint(options.checkpoint);
  const auto tokenizer = load_tokenizer(folder);
  const auto model = load_model(folder);
  model->set_precision(precision);

  GenerationOptions generation = options.generation;
  generation.vocabulary = tokenizer->vocabulary_size();
  generation.end_of_text = tokenizer->end_of_text();
  // In training every document follows an end-of-text.
  std::vector<std::int32_t> prompt{tokenizer->end_of_text()};
  const auto text = tokenizer->encode(options.prompt);
  prompt.insert(prompt.end(), text.begin(), text.end());
  if (generation.max_tokens > model->config().context - static_cast<std::int64_t>(prompt.size())) {
    fmt::print(stderr, "note: prompt and continuation may pass the {} tokens of context the model was trained on\n",
               model->config().context);
  }
  generate(*model, prompt, generation, [&](std::int32_t id) {
    // A token may be a part of a character: bytes go out as they come.
    const std::string bytes = tokenizer->decode({id});
    std::fwrite(bytes.data(), 1, bytes.size(), stdout);
    return std::fflush(stdout) == 0;
  });
  return 0;
}

}  // namespace

void add_generate_command(CLI::App& program, Invocation& invocation) {
  auto options = std::make_shared<GenerateOptions>();
  auto& sampling = options->generation.sampling;
  sampling = {.temperature = 0.8, .top_k = 0, .top_p = 1.0, .seed = 1337};
  CLI::App* command = program.add_subcommand("generate", "Continue a prompt");
  command->description("Writes the continuation only, as it is made; stops at end-of-text.");
  command->add_option("CHECKPOINT", options->checkpoint, "Step folder, or run directory for its newest step")
      ->required();
  command->add_option("--prompt", options->prompt, "Text to continue")->required();
  command->add_option("--max-tokens", options->generation.max_tokens, "Longest continuation")->capture_default_str();
  command->add_option("--temperature", sampling.temperature, "0 is greedy")->capture_default_str();
  command->add_option("--top-k", sampling.top_k, "Sample among the k most probable tokens; 0: all")
      ->capture_default_str();
  command->add_option("--top-p", sampling.top_p, "Sample among the most probable tokens that hold this share")
      ->capture_default_str();
  command->add_option("--seed", sampling.seed, "Seed of the sampler")
      ->check([](const std::string& seed) { return seed.starts_with('-') ? "expected 0 or more, got " + seed : ""; })
      ->capture_default_str();
  command->add_option("--precision", options->precision, "fp32 or bf16")->capture_default_str();
  command->callback([options, &invocation] { invocation.run = [options] { return run_generate(*options); }; });
}

}  // namespace tda
