#pragma once

#include <CLI/CLI.hpp>
#include <string>

#include "lm/error.h"

namespace tda {

/// `name` is no command of `app`: the nearest valid name as the hint.
Error unknown_command(const CLI::App& app, const std::string& name);

/// Turns what CLI11 found wrong into the program's own words. `program` is in the state that the failed parse left.
Error usage_error(const CLI::App& program, const CLI::ParseError& error);

/// The innermost command that the command line named, e.g. `prepare` of `tda data prepare`.
const CLI::App& innermost_command(const CLI::App& program);

/// "tda data prepare" for that command.
std::string full_name(const CLI::App& command);

}  // namespace tda
