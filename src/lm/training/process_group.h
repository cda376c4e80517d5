// The processes that train one model together. A single process is a group of one, for which nothing here does
// anything.
//
// When a process is lost, the others end with a line that names it (process_watch.h). When one of them throws, run()
// tells the others, so that none waits. What fails for a reason that all know is said once, by rank 0.
#pragma once

#include <ATen/core/Tensor.h>

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "lm/training/collectives.h"
#include "lm/training/launch_environment.h"
#include "lm/training/process_watch.h"

namespace tda {

// Thrown by every process of a group at the same point, for a reason that all of them know.
struct CommonFailure {
  std::exception_ptr cause;
  int exit_code = 1;  // of the processes other than rank 0, which throws `cause` on
};

// "gloo" or "nccl" for a backend given as auto, gloo or nccl. Throws Error when it cannot work on `device`.
std::string choose_backend(const std::string& name, at::Device device);

class ProcessGroup {
 public:
  // Meets the other processes. Throws Error naming the ranks that do not come.
  explicit ProcessGroup(const LaunchEnvironment& launch);
  ~ProcessGroup();
  ProcessGroup(const ProcessGroup&) = delete;
  ProcessGroup& operator=(const ProcessGroup&) = delete;

  int rank() const { return launch_.rank; }
  int local_rank() const { return launch_.local_rank; }
  int size() const { return launch_.world_size; }
  bool is_first() const { return launch_.rank == 0; }

  // Runs `job`, which returns an exit code, with the promises above.
  int run(const std::function<int()>& job);

  // Begins to watch the others and connects for tensors. `backend` from choose_backend(). Not for a group of one.
  void connect(const std::string& backend, at::Device device, std::chrono::milliseconds timeout);

  // Runs `phase` in every process. When it throws in one, all throw CommonFailure.
  void together(const std::function<void()>& phase);

  // What the process of rank 0 passed.
  std::string from_first(const std::string& text);

  // By rank, what each process passed: the same number of values in each.
  std::vector<std::vector<double>> exchange(const std::vector<double>& values);

  Collectives::Wait start_all_reduce(const at::Tensor& tensor);
  // (n) of each process -> (size·n), by rank.
  at::Tensor all_gather(const at::Tensor& part);
  // Waits, and tells the watch so.
  void wait_for(const Collectives::Wait& wait);

  // The main thread has got somewhere; call at least every few seconds.
  void advance();

  // While an object lives, the main thread may take minutes for one thing.
  class SlowPhase {
   public:
    explicit SlowPhase(ProcessGroup& group);
    ~SlowPhase();
    SlowPhase(const SlowPhase&) = delete;
    SlowPhase& operator=(const SlowPhase&) = delete;

   private:
    ProcessGroup& group_;
  };

 private:
  std::vector<std::string> gather_text(const std::string& text);
  void enter(SignOfLife::State state);
  void leave();
  int fail_together(const CommonFailure& failure);
  [[noreturn]] void fail_alone();
  bool is_first_to_fail();

  LaunchEnvironment launch_;
  std::unique_ptr<KeyValueStore> store_;
  std::unique_ptr<ProcessWatch> watch_;
  std::unique_ptr<Collectives> collectives_;
  at::Device device_ = at::kCPU;
  std::int64_t gathered_ = 0;  // texts so far: part of their keys
};

}  // namespace tda
