#include <fmt/format.h>

#include <memory>
#include <string>
#include <vector>

#include "cli/command.h"
#include "cli/usage_error.h"

namespace tda {

void add_help_command(CLI::App& program, Invocation& invocation) {
  auto names = std::make_shared<std::vector<std::string>>();
  CLI::App* command = program.add_subcommand("help", "Explain the program or one of its commands");
  command->add_option("command", *names, "Command to explain, e.g. 'tokenize' or 'data prepare'");
  command->callback([names, &program, &invocation] {
    invocation.run = [names, &program] {
      const CLI::App* subject = &program;
      for (const std::string& name : *names) {
        const auto commands = subject->get_subcommands([&](const CLI::App* app) { return app->get_name() == name; });
        if (commands.empty()) throw unknown_command(*subject, name);
        subject = commands.front();
      }
      // App::help() would answer for the command that was parsed, which is `help` itself.
      fmt::print("{}", subject->get_formatter()->make_help(subject, full_name(*subject), CLI::AppFormatMode::Normal));
      return 0;
    };
  });
}

}  // namespace tda
