#include "lm/training/stop_signal.h"

#include <csignal>

namespace tda {
namespace {

volatile std::sig_atomic_t received_signal = 0;

void note(int signal) { received_signal = signal; }

void install(void (*handler)(int), int flags) {
  struct sigaction action = {};
  action.sa_handler = handler;
  action.sa_flags = flags;
  sigemptyset(&action.sa_mask);
  for (const int signal : {SIGINT, SIGTERM}) sigaction(signal, &action, nullptr);
}

}  // namespace

StopSignal::StopSignal() {
  received_signal = 0;
  install(note, SA_RESTART | static_cast<int>(SA_RESETHAND));
}

StopSignal::~StopSignal() { install(SIG_DFL, 0); }

int StopSignal::requested() { return received_signal; }

}  // namespace tda
