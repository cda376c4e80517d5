// A child process that is this same program, with its output in a file.
#pragma once

#include <sys/types.h>

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace tda {

class ChildProcess {
 public:
  // Runs the program with `arguments`, standard output and error appended to `log`. The child has a process group of
  // its own: a Ctrl-C of the terminal reaches only the parent, who passes it on once (a second one would end the child
  // at once). Should the parent die, the child gets SIGTERM. Throws Error when the log cannot be written, and
  // std::system_error when the system gives no process.
  ChildProcess(const std::vector<std::string>& arguments, const std::filesystem::path& log);
  // Stops a child that still runs with SIGTERM and waits for it.
  ~ChildProcess();
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // The exit code once it has ended, 128 + N when signal N ended it; nothing while it runs. Does not wait.
  std::optional<int> exit_code();
  void send(int signal);

 private:
  pid_t pid_ = -1;
  std::optional<int> exit_code_;
};

}  // namespace tda
