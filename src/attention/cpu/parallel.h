// Runs work on several threads: the caller's (TaskRunner) or a small persistent pool of our own.
#pragma once

#include <atomic>
#include <cstdint>

#include "tda/attention.h"

namespace tda::cpu {

// options.threads, or one per core.
int thread_count(const AttentionOptions& options);

// Calls task(argument, index) for index in [0, count) and waits. With one task, or while the pool serves another
// caller, everything runs on the calling thread.
void run_tasks(const TaskRunner* runner, int count, void (*task)(void* argument, int index), void* argument);

// Calls visit(thread, unit) once for every unit in [0, units), handing units out in order to whoever is free.
// `thread` < min(threads, units) tells which scratch memory is the caller's.
template <typename Visit>
void for_each_unit(const AttentionOptions& options, std::int64_t units, const Visit& visit) {
  struct Shared {
    const Visit& visit;
    std::int64_t units;
    std::atomic<std::int64_t> next{0};
  } shared{visit, units};
  const auto task = [](void* argument, int thread) {
    auto& work = *static_cast<Shared*>(argument);
    for (std::int64_t unit; (unit = work.next.fetch_add(1)) < work.units;) work.visit(thread, unit);
  };
  const std::int64_t threads = thread_count(options);
  const int tasks = static_cast<int>(units < threads ? units : threads);
  if (tasks > 0) run_tasks(options.task_runner, tasks, task, &shared);
}

}  // namespace tda::cpu
