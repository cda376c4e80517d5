#include "lm/sweep/sweep.h"

#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>

#include "lm/analysis/report_page.h"
#include "lm/data/dataset.h"
#include "lm/durable_file.h"
#include "lm/error.h"
#include "lm/sweep/child_process.h"
#include "lm/sweep/grid.h"
#include "lm/sweep/sweep_results.h"
#include "lm/training/checkpoint.h"
#include "lm/training/recipe_text.h"
#include "lm/training/stop_signal.h"

namespace tda {
namespace {

namespace fs = std::filesystem;

constexpr std::chrono::milliseconds kPause{50};
constexpr std::array<std::string_view, 8> kOwnNames = {"runs", "logs", "results.csv", "analysis.json", "report.html",
                                                       // What a kill in the middle of replacing one leaves.
                                                       "results.csv.writing", "analysis.json.writing",
                                                       "report.html.writing"};

void require_usable_sweep_output(const fs::path& output) {
  std::error_code error;
  if (!fs::exists(output, error)) return;
  if (!fs::is_directory(output, error))
    throw Error(fmt::format("output {} exists and is not a folder", output.string()));
  for (const auto& entry : fs::directory_iterator(output)) {
    const std::string name = entry.path().filename().string();
    if (std::find(kOwnNames.begin(), kOwnNames.end(), name) == kOwnNames.end()) {
      throw Error(fmt::format("output {} is no sweep: it holds {}", output.string(), name), "choose another --output");
    }
  }
}

// The number of threads is no part of what a run is, and the dataset fills in the vocabulary.
bool same_run(const Recipe& before, const Recipe& now) {
  const auto changes = recipe_changes(before, now);
  return std::all_of(changes.begin(), changes.end(), [](const RecipeChange& change) {
    const std::string name = change.field->name();
    return name == "train.threads" || (name == "model.vocabulary" && change.after == "0");
  });
}

bool is_finished(const fs::path& run, const Recipe& recipe) {
  const auto checkpoints = list_checkpoints(run);
  if (checkpoints.empty() || checkpoints.back().step != recipe.last_step()) return false;
  return same_run(load_recipe(checkpoints.back().directory / "recipe.toml").values, recipe);
}

// The last line of a log that says `error: `.
std::string last_error(const fs::path& log) {
  const std::string text = read_file(log);
  const std::size_t at = text.rfind("error: ");
  return at == std::string::npos ? "no error line" : text.substr(at + 7, text.find('\n', at) - at - 7);
}

class Sweep {
 public:
  explicit Sweep(const SweepRequest& request);
  int run();

 private:
  struct Job {
    std::size_t index;
    std::unique_ptr<ChildProcess> process;
  };

  void find_finished();
  void require_datasets() const;
  void prepare_folders() const;
  fs::path log_of(const SweepRun& run) const { return request_.output / "logs" / (run.point.name + ".log"); }
  std::vector<std::string> arguments(std::size_t index) const;
  void start(std::size_t index);
  void finish(const Job& job, int code);
  void write_results() const { write_sweep_results(request_.output, axes_, runs_, request_.version); }
  int summarize() const;

  const SweepRequest& request_;
  std::vector<GridAxis> axes_;
  std::vector<SweepRun> runs_;
  std::vector<Recipe> recipes_;
  std::vector<Job> jobs_;
};

Sweep::Sweep(const SweepRequest& request) : request_(request), axes_(parse_grid(request.grid)) {
  for (GridPoint& point : grid_points(axes_)) {
    recipes_.push_back(load_recipe(request.recipe, point.overrides).values);
    SweepRun run{std::move(point), {}};
    run.directory = request.output / "runs" / run.point.name;
    runs_.push_back(std::move(run));
  }
  require_usable_sweep_output(request.output);
}

void Sweep::find_finished() {
  for (std::size_t index = 0; index < runs_.size(); ++index) {
    if (!is_finished(runs_[index].directory, recipes_[index])) continue;
    runs_[index].status = "finished";
    fmt::print(stderr, "[{}/{}] {}  is finished already\n", index + 1, runs_.size(), runs_[index].point.name);
  }
}

// What a run to come would refuse is said before the first begins, not after hours. Finished runs need no data.
void Sweep::require_datasets() const {
  std::set<std::string> paths;
  for (std::size_t index = 0; index < runs_.size(); ++index) {
    if (runs_[index].status != "finished") paths.insert(recipes_[index].data.path);
  }
  for (const std::string& path : paths) static_cast<void>(Dataset(path).tokenizer());
}

void Sweep::prepare_folders() const {
  create_folder(request_.output / "runs");
  create_folder(request_.output / "logs");
}

std::vector<std::string> Sweep::arguments(std::size_t index) const {
  std::vector<std::string> words = {"train", request_.recipe.string(), "--resume", "--output",
                                    runs_[index].directory.string()};
  for (const RecipeOverride& item : runs_[index].point.overrides)
    words.push_back(fmt::format("--{}={}", item.name, item.value));
  if (request_.jobs > 1 && recipes_[index].train.threads == 0) {
    words.push_back(fmt::format("--train.threads={}", std::max(1, at::get_num_threads() / request_.jobs)));
  }
  return words;
}

void Sweep::start(std::size_t index) {
  SweepRun& run = runs_[index];
  jobs_.push_back({index, std::make_unique<ChildProcess>(arguments(index), log_of(run))});
  run.status = "running";
  fmt::print(stderr, "[{}/{}] {}  begins\n", index + 1, runs_.size(), run.point.name);
}

void Sweep::finish(const Job& job, int code) {
  SweepRun& run = runs_[job.index];
  const bool by_signal = code == 128 + SIGINT || code == 128 + SIGTERM;
  // Stopped by someone else, while the sweep goes on, is not what was asked for.
  run.status = code == 0 ? "finished" : by_signal && StopSignal::requested() != 0 ? "stopped" : "failed";
  const std::string reason =
      run.status == "failed" ? fmt::format(" (exit code {}): {}", code, last_error(log_of(run))) : "";
  fmt::print(stderr, "[{}/{}] {}  {}{}\n", job.index + 1, runs_.size(), run.point.name, run.status, reason);
  write_results();
}

int Sweep::run() {
  const StopSignal stop;
  find_finished();
  require_datasets();
  prepare_folders();
  std::vector<std::size_t> waiting;
  for (std::size_t index = 0; index < runs_.size(); ++index) {
    if (runs_[index].status != "finished") waiting.push_back(index);
  }
  bool passed_on = false;
  auto next = waiting.begin();
  while (!jobs_.empty() || (next != waiting.end() && StopSignal::requested() == 0)) {
    if (StopSignal::requested() != 0 && !passed_on) {
      for (const Job& job : jobs_) job.process->send(StopSignal::requested());
      passed_on = true;
    }
    while (next != waiting.end() && !passed_on && jobs_.size() < static_cast<std::size_t>(request_.jobs))
      start(*next++);
    std::this_thread::sleep_for(kPause);
    for (auto job = jobs_.begin(); job != jobs_.end();) {
      const std::optional<int> code = job->process->exit_code();
      if (code) finish(*job, *code);
      job = code ? jobs_.erase(job) : job + 1;
    }
  }
  write_results();
  return summarize();
}

int Sweep::summarize() const {
  const auto count = [&](std::string_view status) {
    return std::count_if(runs_.begin(), runs_.end(), [&](const SweepRun& run) { return run.status == status; });
  };
  fmt::print("{}\n", (request_.output / "results.csv").string());
  if (const int signal = StopSignal::requested(); signal != 0) {
    fmt::print(stderr, "stopped with {} of {} runs finished; the same command goes on\n", count("finished"),
               runs_.size());
    return 128 + signal;
  }
  const auto failed =
      std::find_if(runs_.begin(), runs_.end(), [](const SweepRun& run) { return run.status == "failed"; });
  if (failed == runs_.end()) return 0;
  fmt::print(stderr, "error: {} of {} runs failed; the first: {}\nHINT: its output is in {}\n", count("failed"),
             runs_.size(), last_error(log_of(*failed)), log_of(*failed).string());
  return 1;
}

}  // namespace

int sweep(const SweepRequest& request) { return Sweep(request).run(); }

}  // namespace tda
