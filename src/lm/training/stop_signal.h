// Ctrl-C and SIGTERM as a request to end after the step that is being done.
#pragma once

namespace tda {

// While an object lives, the first SIGINT or SIGTERM is noted; a second one ends the process at once, as without it.
class StopSignal {
 public:
  StopSignal();
  ~StopSignal();
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  // SIGINT or SIGTERM once one came, else 0.
  static int requested();
};

}  // namespace tda
