#include "lm/sweep/sweep.h"

#include <memory>

#include "cli/command.h"

namespace tda {

void add_sweep_command(CLI::App& program, Invocation& invocation) {
  auto request = std::make_shared<SweepRequest>();
  request->version = TDA_VERSION;
  CLI::App* command = program.add_subcommand("sweep", "Train a recipe once for every combination of values");
  command->description(
      "Trains one run for each point of a grid over recipe keys, each in a process of its own, and writes results.csv "
      "and a page of plots. The same command goes on where it was stopped.");
  command->add_option("RECIPE", request->recipe, "TOML file, e.g. configs/cpu/tda.toml")->required();
  command->add_option("--grid", request->grid, "section.key=a,b,…; once for each key. One value alone fixes the key")
      ->required()
      ->allow_extra_args(false);
  command->add_option("--jobs", request->jobs, "Runs at a time; the CPU threads are divided among them")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("--output", request->output, "Folder of the sweep")->required();
  command->callback([request, &invocation] { invocation.run = [request] { return sweep(*request); }; });
}

}  // namespace tda
