#include "lm/training/progress.h"

#include <fmt/format.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cmath>
#include <cstdio>

namespace tda {
namespace {

constexpr int kBarWidth = 20;
constexpr std::chrono::milliseconds kTerminalInterval{100};
constexpr std::chrono::milliseconds kPipeInterval{1000};

int terminal_columns() {
  winsize size{};
  return ::ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : 80;
}

std::string rate_text(double per_second) {
  if (per_second >= 1e6) return fmt::format("{:.2f}M", per_second / 1e6);
  if (per_second >= 1e4) return fmt::format("{:.1f}k", per_second / 1e3);
  return fmt::format("{:.0f}", per_second);
}

}  // namespace

std::string duration_text(double seconds) {
  const auto whole = static_cast<std::int64_t>(std::llround(seconds));
  if (whole >= 3600) return fmt::format("{}:{:02}:{:02}", whole / 3600, whole / 60 % 60, whole % 60);
  return fmt::format("{}:{:02}", whole / 60, whole % 60);
}

Progress::Progress(std::int64_t first_step, std::int64_t last_step, bool silent)
    : first_step_(first_step),
      last_step_(last_step),
      silent_(silent),
      terminal_(!silent && ::isatty(STDERR_FILENO) == 1) {}

Progress::~Progress() {
  if (live_line_shown_) std::fputc('\n', stderr);
}

std::string Progress::line(const StepReport& report) const {
  const std::chrono::duration<double> elapsed = Clock::now() - start_;
  const auto done = static_cast<double>(report.step - first_step_);
  const double remaining = elapsed.count() / done * static_cast<double>(last_step_ - report.step);
  const int digits = static_cast<int>(std::to_string(last_step_).size());
  return fmt::format("step {:>{}}/{}  loss {:.4f}  lr {:.2e}  norm {:.3f}  {} tok/s  MFU {:.1f}%  ETA {}", report.step,
                     digits, last_step_, report.loss, report.learning_rate, report.gradient_norm,
                     rate_text(report.tokens_per_second), 100.0 * report.model_flops_utilization,
                     duration_text(remaining));
}

std::string Progress::bar(std::int64_t step) const {
  const auto filled = static_cast<int>(step * kBarWidth / last_step_);
  std::string text = "[";
  for (int i = 0; i < kBarWidth; ++i) text += i < filled ? '#' : '.';
  return text + "] ";
}

void Progress::clear_live_line() {
  if (live_line_shown_) fmt::print(stderr, "\r\033[K");
  live_line_shown_ = false;
}

void Progress::step(const StepReport& report) {
  if (silent_) return;
  const bool always = report.step == first_step_ + 1 || report.step == last_step_;
  const Clock::time_point now = Clock::now();
  if (!always && now - shown_ < (terminal_ ? kTerminalInterval : kPipeInterval)) return;
  shown_ = now;
  if (!terminal_) {
    fmt::print(stderr, "{}\n", line(report));
    return;
  }
  std::string text = bar(report.step) + line(report);
  // A line that wraps could not be overwritten.
  text = text.substr(0, static_cast<std::size_t>(terminal_columns() - 1));
  fmt::print(stderr, "\r\033[K{}", text);
  std::fflush(stderr);
  live_line_shown_ = true;
}

void Progress::note(const std::string& text) {
  if (silent_) return;
  clear_live_line();
  fmt::print(stderr, "{}\n", text);
}

}  // namespace tda
