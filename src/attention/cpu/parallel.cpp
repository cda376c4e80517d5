#include "attention/cpu/parallel.h"

#include <unistd.h>

#include <algorithm>
#include <condition_variable>
#include <mutex>
#include <thread>

namespace tda::cpu {
namespace {

// Threads that sleep between calls. Never destroyed: joining threads during process exit is a known way to hang.
class ThreadPool {
 public:
  // The pool of this process; a forked child gets a new one, because threads do not survive a fork.
  static ThreadPool& instance() {
    static std::mutex mutex;
    static ThreadPool* pool = nullptr;
    static pid_t owner = 0;
    const std::lock_guard lock(mutex);
    if (pool == nullptr || owner != getpid()) {
      pool = new ThreadPool;
      owner = getpid();
    }
    return *pool;
  }

  // False if another caller uses the pool.
  bool try_run(int count, void (*task)(void*, int), void* argument) {
    const std::unique_lock busy(busy_, std::try_to_lock);
    if (!busy.owns_lock()) return false;
    {
      const std::lock_guard lock(mutex_);
      while (static_cast<int>(workers_) < count - 1) start_worker();
      task_ = task;
      argument_ = argument;
      count_ = count;
      next_ = 1;
      running_ = 0;
      ++generation_;
    }
    wake_.notify_all();
    task(argument, 0);
    std::unique_lock lock(mutex_);
    // Tasks that no worker has taken yet run here: the caller never waits for a thread that is slow to wake.
    while (next_ < count_) {
      const int index = next_++;
      lock.unlock();
      task(argument, index);
      lock.lock();
    }
    done_.wait(lock, [&] { return running_ == 0; });
    return true;
  }

 private:
  void start_worker() {
    ++workers_;
    std::thread([this] { work(); }).detach();
  }

  void work() {
    std::unique_lock lock(mutex_);
    std::uint64_t seen = 0;
    for (;;) {
      wake_.wait(lock, [&] { return generation_ != seen; });
      seen = generation_;
      while (next_ < count_) {
        const int index = next_++;
        ++running_;
        lock.unlock();
        task_(argument_, index);
        lock.lock();
        if (--running_ == 0) done_.notify_one();
      }
    }
  }

  std::mutex busy_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  std::uint64_t generation_ = 0;
  std::size_t workers_ = 0;
  void (*task_)(void*, int) = nullptr;
  void* argument_ = nullptr;
  int count_ = 0, next_ = 0, running_ = 0;
};

}  // namespace

int thread_count(const AttentionOptions& options) {
  if (options.threads > 0) return options.threads;
  static const int cores = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  return cores;
}

void run_tasks(const TaskRunner* runner, int count, void (*task)(void* argument, int index), void* argument) {
  if (count > 1 && runner != nullptr) {
    runner->run(runner->context, count, task, argument);
  } else if (count == 1 || !ThreadPool::instance().try_run(count, task, argument)) {
    for (int index = 0; index < count; ++index) task(argument, index);
  }
}

}  // namespace tda::cpu
