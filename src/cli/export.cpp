#include <fmt/format.h>

#include <filesystem>
#include <memory>
#include <string>

#include "cli/command.h"
#include "lm/error.h"
#include "lm/interchange/huggingface.h"

namespace tda {
namespace {

struct ExportOptions {
  std::filesystem::path checkpoint;
  std::string format;
  std::filesystem::path folder;
};

int run_export(const ExportOptions& options) {
  if (options.format != "huggingface") {
    throw Error(fmt::format("--to is \"{}\", expected \"huggingface\"", options.format));
  }
  export_to_huggingface(options.checkpoint, options.folder);
  fmt::print("{}\n", options.folder.string());
  return 0;
}

}  // namespace

void add_export_command(CLI::App& program, Invocation& invocation) {
  auto options = std::make_shared<ExportOptions>();
  CLI::App* command = program.add_subcommand("export", "Write a model for another program");
  command->description(
      "Writes a folder that AutoModelForCausalLM.from_pretrained(DIR, trust_remote_code=True) of Hugging Face "
      "transformers loads: weights, configuration, tokenizer, and the model in Python.");
  command->add_option("CHECKPOINT", options->checkpoint, "Step folder, or run directory for its newest step")
      ->required();
  command->add_option("--to", options->format, "huggingface")->required();
  command->add_option("DIR", options->folder, "Folder to write, absent or empty")->required();
  command->callback([options, &invocation] { invocation.run = [options] { return run_export(*options); }; });
}

}  // namespace tda
