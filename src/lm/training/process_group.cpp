#include "lm/training/process_group.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "lm/error.h"

namespace tda {
namespace {

using State = SignOfLife::State;
using std::chrono::milliseconds;
using Clock = std::chrono::steady_clock;

// Launchers start all processes at once; what takes longer to come has failed to start.
constexpr std::chrono::seconds kMeetingTime{60};
// The watch ends a job long before; this is for a network that swallows packets while all processes are well.
constexpr std::chrono::minutes kCollectiveTime{10};
constexpr milliseconds kPoll{10};
// Time for rank 0 to print why all fail, before a launcher sees another exit and kills it.
constexpr std::chrono::seconds kLastWordTime{1};

// An outcome as text: exit code, message and hint, separated by a character that no message holds.
constexpr char kSeparator = '\0';

std::string outcome_text(int code, const std::string& message, const std::string& hint) {
  return fmt::format("{}{}{}{}{}", code, kSeparator, message, kSeparator, hint);
}

[[noreturn]] void throw_outcome(const std::string& text, const std::string& prefix) {
  const std::size_t first = text.find(kSeparator), second = text.find(kSeparator, first + 1);
  const std::string message = prefix + text.substr(first + 1, second - first - 1), hint = text.substr(second + 1);
  if (text.starts_with("2")) throw Error(message, hint);
  throw std::runtime_error(message);
}

}  // namespace

std::string choose_backend(const std::string& name, at::Device device) {
  std::string fitting = device.is_cuda() ? "nccl" : "gloo";
  if (name != "auto" && name != fitting) {
    throw Error(fmt::format("distributed.backend is {}, expected {} for train.device {}", name, fitting,
                            device.is_cuda() ? "cuda" : "cpu"),
                "auto takes the one that fits");
  }
  if (fitting == "nccl" && !Collectives::has_nccl()) {
    throw Error("this program was built without NCCL and trains on one GPU only",
                "build it where nccl.h is found (the wheel nvidia-nccl has it), or start one process");
  }
  return fitting;
}

ProcessGroup::ProcessGroup(const LaunchEnvironment& launch) : launch_(launch) {
  if (size() == 1) return;
  // A connection that another process closed by dying shall be an error here, not the end.
  std::signal(SIGPIPE, SIG_IGN);
  const bool serve = is_first() && !launch.launcher_serves;
  try {
    store_ = std::make_unique<KeyValueStore>(launch, serve, kMeetingTime);
    gather_text("");
  } catch (const CollectiveError& error) {
    throw Error(fmt::format("rank {} does not reach the other processes at {}:{}: {}", rank(), launch.address,
                            launch.port, error.what()));
  }
}

ProcessGroup::~ProcessGroup() = default;

int ProcessGroup::run(const std::function<int()>& job) {
  if (size() == 1) return job();
  try {
    const int code = job();
    exchange({});  // nobody leaves while another still needs it
    leave();
    return code;
  } catch (const CommonFailure& failure) {
    return fail_together(failure);
  } catch (...) {
    fail_alone();
  }
}

void ProcessGroup::connect(const std::string& backend, at::Device device, milliseconds timeout) {
  device_ = device;
  watch_ = std::make_unique<ProcessWatch>(launch_, timeout);
  gather_text("");
  watch_->start();
  enter(State::kWaiting);
  collectives_ = std::make_unique<Collectives>(*store_, launch_, backend, device, kCollectiveTime);
  enter(State::kWorking);
}

std::vector<std::string> ProcessGroup::gather_text(const std::string& text) {
  std::vector<std::string> keys;
  keys.reserve(static_cast<std::size_t>(size()));
  for (int other = 0; other < size(); ++other) keys.push_back(fmt::format("text/{}/{}", gathered_, other));
  ++gathered_;
  const State before = watch_ ? watch_->state() : State::kWorking;
  enter(State::kWaiting);
  store_->set(keys[static_cast<std::size_t>(rank())], text);
  const Clock::time_point start = Clock::now();
  const Clock::duration limit = watch_ ? Clock::duration(kCollectiveTime) : Clock::duration(kMeetingTime);
  for (int other = 0; other < size(); ++other) {
    while (!store_->has(keys[static_cast<std::size_t>(other)])) {
      if (Clock::now() - start > limit) {
        throw CollectiveError(fmt::format("rank {} did not come within {} s", other,
                                          std::chrono::duration_cast<std::chrono::seconds>(limit).count()));
      }
      std::this_thread::sleep_for(kPoll);
    }
  }
  std::vector<std::string> texts = store_->get(keys);
  enter(before);
  return texts;
}

void ProcessGroup::together(const std::function<void()>& phase) {
  if (size() == 1) return phase();
  std::string outcome;
  try {
    phase();
  } catch (const Error& error) {
    outcome = outcome_text(2, error.what(), error.hint());
  } catch (const std::exception& error) {
    outcome = outcome_text(1, error.what(), "");
  }
  const std::vector<std::string> outcomes = gather_text(outcome);
  for (std::size_t failed = 0; failed < outcomes.size(); ++failed) {
    if (outcomes[failed].empty()) continue;
    try {
      // What rank 0 meets is nearly always what all meet.
      throw_outcome(outcomes[failed], failed == 0 ? "" : fmt::format("rank {}: ", failed));
    } catch (...) {
      throw CommonFailure{std::current_exception(), outcomes[failed].front() - '0'};
    }
  }
}

std::string ProcessGroup::from_first(const std::string& text) { return size() == 1 ? text : gather_text(text).front(); }

std::vector<std::vector<double>> ProcessGroup::exchange(const std::vector<double>& values) {
  if (size() == 1) return {values};
  const auto columns = static_cast<std::int64_t>(values.size()) + 1;  // a collective of nothing would be none
  std::vector<double> padded = values;
  padded.push_back(0.0);
  const State before = watch_->state();
  const at::Tensor all = all_gather(at::tensor(padded, at::kDouble).to(device_));
  enter(State::kWaiting);  // a GPU is waited for here, not above
  const at::Tensor read = all.cpu();
  enter(before);
  std::vector<std::vector<double>> result;
  for (int other = 0; other < size(); ++other) {
    const double* row = read.const_data_ptr<double>() + other * columns;
    result.emplace_back(row, row + columns - 1);
  }
  return result;
}

Collectives::Wait ProcessGroup::start_all_reduce(const at::Tensor& tensor) {
  return collectives_->start_all_reduce(tensor);
}

at::Tensor ProcessGroup::all_gather(const at::Tensor& part) {
  if (size() == 1) return part;
  at::Tensor whole = at::empty({part.numel() * size()}, part.options());
  wait_for(collectives_->start_all_gather(whole, part));
  return whole;
}

void ProcessGroup::wait_for(const Collectives::Wait& wait) {
  const State before = watch_->state();
  enter(State::kWaiting);
  wait();
  enter(before);
}

void ProcessGroup::advance() {
  if (watch_) watch_->advance();
}

void ProcessGroup::enter(State state) {
  if (watch_) watch_->enter(state);
}

// Rank 0 may hold the store, and goes last.
void ProcessGroup::leave() {
  if (watch_) watch_->announce(State::kLeft);
  watch_.reset();
  collectives_.reset();
  store_->set(fmt::format("left/{}", rank()), "");
  if (!is_first()) return;
  const Clock::time_point start = Clock::now();
  for (int other = 0; other < size(); ++other) {
    while (!store_->has(fmt::format("left/{}", other)) && Clock::now() - start < kMeetingTime) {
      std::this_thread::sleep_for(kPoll);
    }
  }
}

int ProcessGroup::fail_together(const CommonFailure& failure) {
  leave();
  if (is_first()) std::rethrow_exception(failure.cause);
  std::this_thread::sleep_for(kLastWordTime);
  return failure.exit_code;
}

// A collective may be under way that will never end, so nothing is unwound that would wait for it: threads of the group
// stay, and end with the process before static objects that they use are destroyed.
void ProcessGroup::fail_alone() {
  const auto end_at_once = [](int code, void* serves) {
    std::fflush(nullptr);
    // The others read in the store that this process has said why it ends; without the store they would guess.
    if (serves != nullptr) std::this_thread::sleep_for(2 * ProcessWatch::kLongestPeriod);
    ::_exit(code);
  };
  ::on_exit(end_at_once, is_first() && !launch_.launcher_serves ? this : nullptr);
  if (collectives_) collectives_->abandon();
  const auto tell = [this] {
    static_cast<void>(store_.release());
    if (!watch_) return;
    watch_->announce(State::kFailed);
    static_cast<void>(watch_.release());
  };
  // A shard that was damaged, say, is met by several at once: one line is enough.
  const auto tell_and_leave_the_word = [&](int code) {
    const bool first = is_first_to_fail();
    tell();
    if (!first) std::exit(code);
  };
  try {
    throw;
  } catch (const Error& error) {
    tell_and_leave_the_word(2);
    throw Error(fmt::format("rank {}: {}", rank(), error.what()), error.hint());
  } catch (const CollectiveError& error) {
    // Most likely another process is lost; then the watch names it and ends this one.
    if (watch_) {
      enter(State::kWaiting);
      std::this_thread::sleep_for(watch_->time_to_verdict());
    }
    tell();
    throw std::runtime_error(fmt::format("rank {}: {}", rank(), error.what()));
  } catch (const std::exception& error) {
    tell_and_leave_the_word(1);
    throw std::runtime_error(fmt::format("rank {}: {}", rank(), error.what()));
  }
}

bool ProcessGroup::is_first_to_fail() {
  try {
    return store_->claim("failed");
  } catch (const CollectiveError&) {
    return true;  // nobody else can have said it where there is no store
  }
}

ProcessGroup::SlowPhase::SlowPhase(ProcessGroup& group) : group_(group) { group_.enter(State::kSlow); }

ProcessGroup::SlowPhase::~SlowPhase() { group_.enter(State::kWorking); }

}  // namespace tda
