#include "cli/usage_error.h"

#include <fmt/format.h>

#include <vector>

#include "lm/nearest_name.h"

namespace tda {
namespace {

std::string see_help(const CLI::App& app) {
  const std::string name = full_name(app);
  return fmt::format("`tda help{}` explains the usage",
                     name.substr(name.find(' ') == std::string::npos ? name.size() : 3));
}

std::string suggestion(const std::string& name, const std::vector<std::string>& valid, const CLI::App& app) {
  const auto nearest = nearest_name(name, valid);
  return nearest ? fmt::format("did you mean '{}'? {}", *nearest, see_help(app)) : see_help(app);
}

Error unknown_option(const CLI::App& app, const std::string& argument) {
  const std::string name = argument.substr(0, argument.find('='));
  std::vector<std::string> valid;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& long_name : option->get_lnames()) valid.push_back("--" + long_name);
  }
  return Error(fmt::format("unknown option '{}' of `{}`", name, full_name(app)), suggestion(name, valid, app));
}

}  // namespace

const CLI::App& innermost_command(const CLI::App& program) {
  const CLI::App* command = &program;
  for (auto parsed = command->get_subcommands(); !parsed.empty(); parsed = command->get_subcommands()) {
    command = parsed.back();
  }
  return *command;
}

std::string full_name(const CLI::App& command) {
  const CLI::App* parent = command.get_parent();
  return parent == nullptr ? command.get_name() : full_name(*parent) + " " + command.get_name();
}

Error unknown_command(const CLI::App& app, const std::string& name) {
  std::vector<std::string> valid;
  for (const CLI::App* command : app.get_subcommands({})) valid.push_back(command->get_name());
  return Error(fmt::format("unknown command '{}' of `{}`", name, full_name(app)), suggestion(name, valid, app));
}

Error usage_error(const CLI::App& program, const CLI::ParseError& error) {
  const CLI::App& command = innermost_command(program);
  // CLI11 reports a missing option before an unknown one; a misspelled option is usually the cause of both.
  if (!command.get_allow_extras()) {
    const std::vector<std::string> unknown = program.remaining(true);
    if (!unknown.empty()) {
      const std::string& first = unknown.front();
      if (first.starts_with("-")) return unknown_option(command, first);
      if (!command.get_subcommands({}).empty()) return unknown_command(command, first);
      return Error(fmt::format("unexpected argument '{}' of `{}`", first, full_name(command)), see_help(command));
    }
  }
  std::string message = error.what();
  message = message.substr(0, message.find('\n'));
  return Error(fmt::format("`{}`: {}", full_name(command), message), see_help(command));
}

}  // namespace tda
