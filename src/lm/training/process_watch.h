// Finds out which process died or hangs, where a collective alone would only wait.
//
// Each process runs a thread that writes a sign of life into the store and reads those of the others. A sign holds how
// far the main thread has come, so that a process whose main thread is stuck is told from one that waits for it.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "lm/training/collectives.h"
#include "lm/training/launch_environment.h"

namespace tda {

struct SignOfLife {
  enum class State {
    kWorking,
    kSlow,     // in a phase that may take minutes: a checkpoint, start weights
    kWaiting,  // for other processes
    kLeft,     // done
    kFailed,   // it has said why itself
  };
  std::uint64_t beat = 0;      // grows as long as the process lives
  std::uint64_t activity = 0;  // grows when the main thread gets anywhere
  State state = State::kWorking;

  std::string text() const;
  static SignOfLife parse(const std::string& text);
};

// Judges by what it has seen, one look after the other. Time is counted in looks, not by a clock, so that a job that is
// suspended and continued as a whole loses nobody.
class LivenessJudge {
 public:
  struct Limits {
    int dead = 10;   // looks without a new beat
    int hangs = 30;  // looks at which this process waited and the other neither worked on nor waited
    int slow = 300;  // the same for a process in a slow phase
  };
  LivenessJudge(int rank, Limits limits) : rank_(rank), limits_(limits) {}

  struct Verdict {
    int rank = 0;
    SignOfLife::State last_state = SignOfLife::State::kWorking;
    bool dead = false;  // else it hangs, or has failed when last_state says so
    int looks = 0;
  };
  // `signs` of all processes by rank. Returns the first process that is lost, if one is.
  std::optional<Verdict> look(const std::vector<SignOfLife>& signs);

 private:
  int rank_;
  Limits limits_;
  std::vector<SignOfLife> last_;
  std::vector<int> silent_, idle_;
};

class ProcessWatch {
 public:
  static constexpr std::chrono::milliseconds kLongestPeriod{1500};  // between two looks

  // `timeout`: after how long a process that others wait for counts as hanging; a third of it without a sign of life
  // counts as death. When a process is lost, the lowest rank left prints one line that names it, and all end with 1.
  ProcessWatch(const LaunchEnvironment& launch, std::chrono::milliseconds timeout);
  ~ProcessWatch();
  ProcessWatch(const ProcessWatch&) = delete;
  ProcessWatch& operator=(const ProcessWatch&) = delete;

  // Called once the first sign of every process is in the store.
  void start();

  void advance() { activity_.fetch_add(1, std::memory_order_relaxed); }
  SignOfLife::State state() const { return state_.load(); }
  void enter(SignOfLife::State state);
  // Writes the sign at once.
  void announce(SignOfLife::State state);

  // Within this time after a process died, this process has ended.
  std::chrono::milliseconds time_to_verdict() const { return dead_after_ + 4 * period_ + 2 * kLongestPeriod; }

 private:
  void run();
  void guard_store();
  template <typename Look>
  void every_period(Look look);
  void publish();
  std::vector<SignOfLife> read_signs();
  [[noreturn]] void end_job(const LivenessJudge::Verdict& verdict);
  int looks_in(std::chrono::milliseconds time) const;
  [[noreturn]] void end_without_store(const std::string& reason) const;

  LaunchEnvironment launch_;
  std::chrono::milliseconds timeout_, dead_after_, period_;
  KeyValueStore store_;
  std::vector<std::string> keys_;  // by rank
  std::atomic<std::uint64_t> activity_{0};
  std::atomic<SignOfLife::State> state_{SignOfLife::State::kWorking};
  std::atomic<std::uint64_t> beat_{0};
  std::mutex store_mutex_;
  std::mutex stop_mutex_;
  std::condition_variable stop_changed_;
  bool stop_ = false;
  std::thread watcher_, guard_;
};

}  // namespace tda
