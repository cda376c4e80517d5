#include "lm/training/process_watch.h"

#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <sstream>
#include <stdexcept>

namespace tda {
namespace {

using State = SignOfLife::State;
using std::chrono::milliseconds;

// Looks in the time after which silence counts as death, and periods at most and at least this long.
constexpr int kDeadLooks = 10;
constexpr milliseconds kShortestPeriod{100};
constexpr int kSlowFactor = 10;

double in_seconds(milliseconds time) { return std::chrono::duration<double>(time).count(); }

}  // namespace

std::string SignOfLife::text() const { return fmt::format("{} {} {}", beat, activity, static_cast<int>(state)); }

SignOfLife SignOfLife::parse(const std::string& text) {
  SignOfLife sign;
  int state = 0;
  std::istringstream(text) >> sign.beat >> sign.activity >> state;
  sign.state = static_cast<State>(state);
  return sign;
}

std::optional<LivenessJudge::Verdict> LivenessJudge::look(const std::vector<SignOfLife>& signs) {
  if (last_.empty()) {
    last_ = signs;
    silent_.assign(signs.size(), 0);
    idle_.assign(signs.size(), 0);
  }
  const auto stands_still = [&](std::size_t rank) {
    return signs[rank].activity == last_[rank].activity && signs[rank].state == last_[rank].state;
  };
  const auto own = static_cast<std::size_t>(rank_);
  const bool waited = signs[own].state == State::kWaiting && stands_still(own);
  std::optional<Verdict> verdict;
  for (std::size_t rank = 0; rank < signs.size() && !verdict; ++rank) {
    const SignOfLife& sign = signs[rank];
    if (rank == own || sign.state == State::kLeft) continue;
    silent_[rank] = sign.beat == last_[rank].beat ? silent_[rank] + 1 : 0;
    const bool idle = waited && stands_still(rank) && sign.state != State::kWaiting;
    idle_[rank] = idle ? idle_[rank] + 1 : 0;
    const int hang_limit = sign.state == State::kSlow ? limits_.slow : limits_.hangs;
    const bool dead = silent_[rank] >= limits_.dead;
    if (sign.state != State::kFailed && !dead && idle_[rank] < hang_limit) continue;
    verdict = Verdict{static_cast<int>(rank), sign.state, dead, dead ? silent_[rank] : idle_[rank]};
  }
  last_ = signs;
  return verdict;
}

ProcessWatch::ProcessWatch(const LaunchEnvironment& launch, milliseconds timeout)
    : launch_(launch),
      timeout_(timeout),
      dead_after_(timeout / 3),
      period_(std::clamp(dead_after_ / kDeadLooks, kShortestPeriod, kLongestPeriod)),
      store_(launch, /*serve=*/false, timeout) {
  for (int rank = 0; rank < launch.world_size; ++rank) keys_.push_back(fmt::format("sign/{}", rank));
  publish();
}

ProcessWatch::~ProcessWatch() {
  {
    const std::lock_guard lock(stop_mutex_);
    stop_ = true;
  }
  stop_changed_.notify_all();
  for (std::thread* thread : {&watcher_, &guard_}) {
    if (thread->joinable()) thread->join();
  }
}

void ProcessWatch::start() {
  watcher_ = std::thread([this] { run(); });
  guard_ = std::thread([this] { guard_store(); });
}

void ProcessWatch::enter(State state) {
  advance();
  state_.store(state);
}

void ProcessWatch::announce(State state) {
  enter(state);
  publish();
}

void ProcessWatch::publish() {
  const std::lock_guard lock(store_mutex_);
  const SignOfLife sign{++beat_, activity_.load(std::memory_order_relaxed), state_.load()};
  store_.set(keys_[static_cast<std::size_t>(launch_.rank)], sign.text());
}

std::vector<SignOfLife> ProcessWatch::read_signs() {
  const std::lock_guard lock(store_mutex_);
  std::vector<SignOfLife> signs;
  for (const std::string& text : store_.get(keys_)) signs.push_back(SignOfLife::parse(text));
  return signs;
}

int ProcessWatch::looks_in(milliseconds time) const {
  return static_cast<int>(std::max<std::int64_t>(time / period_, 2));
}

template <typename Look>
void ProcessWatch::every_period(Look look) {
  std::unique_lock lock(stop_mutex_);
  while (!stop_changed_.wait_for(lock, period_, [&] { return stop_; })) {
    lock.unlock();
    look();
    lock.lock();
  }
}

void ProcessWatch::run() {
  LivenessJudge judge(
      launch_.rank,
      {.dead = looks_in(dead_after_), .hangs = looks_in(timeout_), .slow = looks_in(kSlowFactor * timeout_)});
  every_period([&] {
    try {
      publish();
      if (const auto verdict = judge.look(read_signs())) end_job(*verdict);
    } catch (const CollectiveError& error) {
      end_without_store(error.what());
    }
  });
}

// A store whose process or machine has stopped lets its clients wait for ever.
void ProcessWatch::guard_store() {
  std::uint64_t last_beat = 0;
  int silent = 0;
  every_period([&] {
    const std::uint64_t beat = beat_.load();
    silent = beat == last_beat ? silent + 1 : 0;
    last_beat = beat;
    // Longer than for a process, so that one that only shares the machine with the store is named first.
    if (silent >= 2 * looks_in(dead_after_)) end_without_store("it takes no requests");
  });
}

// No unwinding: the main thread stands in a collective that will never end, and destructors would wait for it.
void ProcessWatch::end_job(const LivenessJudge::Verdict& verdict) {
  const bool reports = launch_.rank == (verdict.rank == 0 ? 1 : 0);
  if (verdict.last_state != State::kFailed && reports) {
    const double seconds = in_seconds(verdict.looks * period_);
    if (verdict.dead) {
      fmt::print(stderr, "\nerror: rank {} died: no sign of life for {:.1f} s; the job ends\n", verdict.rank, seconds);
    } else {
      fmt::print(stderr,
                 "\nerror: rank {} hangs: the others have waited for it for {:.1f} s; the job ends\n"
                 "HINT: where one micro batch takes longer than that, raise distributed.timeout\n",
                 verdict.rank, seconds);
    }
    std::fflush(stderr);
  }
  if (launch_.rank == 0 && !launch_.launcher_serves) {
    // Without the store the others would take this process for the lost one.
    announce(State::kFailed);
    std::this_thread::sleep_for(2 * kLongestPeriod);
  }
  ::_exit(1);
}

void ProcessWatch::end_without_store(const std::string& reason) const {
  if (launch_.launcher_serves) {
    fmt::print(stderr, "\nerror: rank {}: the launcher at {}:{} does not answer any more ({}); the job ends\n",
               launch_.rank, launch_.address, launch_.port, reason);
  } else if (launch_.rank == 1) {
    fmt::print(stderr, "\nerror: rank 0 died: its store at {}:{} does not answer any more ({}); the job ends\n",
               launch_.address, launch_.port, reason);
  }
  std::fflush(stderr);
  ::_exit(1);
}

}  // namespace tda
