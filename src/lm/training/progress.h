// What a person sees while a model trains, on stderr: a live line with a bar on a terminal, plain lines in a pipe.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

namespace tda {

struct StepReport {
  std::int64_t step = 0;  // updates done
  double loss = 0.0;      // nats per token
  double learning_rate = 0.0;
  double gradient_norm = 0.0;
  double tokens_per_second = 0.0;
  double model_flops_utilization = 0.0;
};

// "1:02:03", "2:03".
std::string duration_text(double seconds);

class Progress {
 public:
  // `silent`: shows nothing, for all processes of a group but one.
  Progress(std::int64_t first_step, std::int64_t last_step, bool silent = false);
  ~Progress();
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  // In a pipe at most one line a second is written, but always the first and the last.
  void step(const StepReport& report);

  // A line that stays: validation, samples, checkpoints.
  void note(const std::string& line);

 private:
  using Clock = std::chrono::steady_clock;

  std::string line(const StepReport& report) const;
  std::string bar(std::int64_t step) const;
  void clear_live_line();

  std::int64_t first_step_, last_step_;
  bool silent_;
  bool terminal_;
  bool live_line_shown_ = false;
  Clock::time_point start_ = Clock::now();
  Clock::time_point shown_{};
};

}  // namespace tda
