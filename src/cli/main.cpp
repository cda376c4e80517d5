// The program `tda`: parses the command line, runs one command and turns what went wrong into a line and an exit code.
#include <c10/util/Exception.h>
#include <fmt/format.h>
#include <torch/version.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <filesystem>
#include <iostream>
#include <new>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/usage_error.h"
#include "lm/error.h"

namespace {

constexpr int kFailure = 1;
constexpr int kBadInput = 2;

int report(const tda::Error& error) {
  fmt::print(stderr, "error: {}\n", error.what());
  if (!error.hint().empty()) fmt::print(stderr, "HINT: {}\n", error.hint());
  return kBadInput;
}

int report_failure(const std::string& message) {
  fmt::print(stderr, "error: {}\n", message);
  return kFailure;
}

void add_commands(CLI::App& program, tda::Invocation& invocation) {
  tda::add_tokenize_command(program, invocation);
  tda::add_data_command(program, invocation);
  tda::add_generate_command(program, invocation);
  tda::add_score_command(program, invocation);
  tda::add_train_command(program, invocation);
  tda::add_analyze_command(program, invocation);
  tda::add_bench_command(program, invocation);
  tda::add_help_command(program, invocation);
}

// A full disk shows only when the buffers are written.
int with_complete_output(int code) {
  std::cout.flush();
  if (!std::cout || std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    throw tda::Error(fmt::format("cannot write to standard output: {}", std::strerror(errno)));
  }
  return code;
}

int parse_and_run(int argc, char** argv) {
  CLI::App program("Threshold Differential Attention: train, sample and look into language models", "tda");
  program.set_version_flag("--version", fmt::format("tda {} (PyTorch {})", TDA_VERSION, TORCH_VERSION));
  // Otherwise an argument that is also a command's name, such as a folder `data`, would begin that command.
  program.require_subcommand(0, 1);
  tda::Invocation invocation;
  add_commands(program, invocation);
  try {
    program.parse(argc, argv);
  } catch (const CLI::Success& success) {  // --help and --version
    // `tda COMAND --help` asks about a command that does not exist, not about the program.
    const std::vector<std::string> unknown = program.remaining();
    if (!unknown.empty() && !unknown.front().starts_with("-")) throw tda::unknown_command(program, unknown.front());
    return with_complete_output(program.exit(success));
  } catch (const CLI::ParseError& error) {
    throw tda::usage_error(program, error);
  }
  if (!invocation.run) {
    const CLI::App& command = tda::innermost_command(program);
    throw tda::Error(fmt::format("`{}` needs a command", tda::full_name(command)),
                     fmt::format("`{} --help` lists them", tda::full_name(command)));
  }
  return with_complete_output(invocation.run());
}

}  // namespace

int main(int argc, char** argv) {
  // Beyond the file size limit a write shall fail with an error that is reported instead of killing the process.
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    return parse_and_run(argc, argv);
  } catch (const tda::Error& error) {
    return report(error);
  } catch (const std::filesystem::filesystem_error& error) {  // a path that the system refuses, e.g. for its length
    return report(tda::Error(fmt::format("{}: {}", error.path1().string(), error.code().message())));
  } catch (const c10::Error& error) {
    return report_failure(error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return report_failure("out of memory");
  } catch (const std::exception& error) {
    return report_failure(error.what());
  }
}
