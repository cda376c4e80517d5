#pragma once

#include <CLI/CLI.hpp>
#include <functional>

namespace tda {

/// What the command line asks for. A command's CLI11 callback sets `run` once its options are parsed; main() calls it
/// afterwards, so that wrong usage is told from a failing run. `run` returns the exit code; bad input is thrown as
/// tda::Error (exit 2), any other exception exits with 1. Results go to standard output, progress to standard error.
struct Invocation {
  std::function<int()> run;
};

/// One file per command, each with one such function, registered in main.cpp by one line:
///   void add_X_command(CLI::App& program, Invocation& invocation) {
///     auto options = std::make_shared<XOptions>();
///     CLI::App* command = program.add_subcommand("X", "what it does");
///     command->add_option("--steps", options->steps, "...");
///     command->callback([options, &invocation] { invocation.run = [options] { return run_X(*options); }; });
///   }
void add_help_command(CLI::App& program, Invocation& invocation);
void add_tokenize_command(CLI::App& program, Invocation& invocation);
void add_data_command(CLI::App& program, Invocation& invocation);
void add_train_command(CLI::App& program, Invocation& invocation);
void add_generate_command(CLI::App& program, Invocation& invocation);
void add_score_command(CLI::App& program, Invocation& invocation);
void add_analyze_command(CLI::App& program, Invocation& invocation);
void add_report_command(CLI::App& program, Invocation& invocation);
void add_export_command(CLI::App& program, Invocation& invocation);
void add_sweep_command(CLI::App& program, Invocation& invocation);
void add_bench_command(CLI::App& program, Invocation& invocation);

}  // namespace tda
