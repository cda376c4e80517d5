#include "lm/training/tensorboard_log.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "lm/training/tensorboard_event.h"

namespace tda {
namespace {

namespace fs = std::filesystem;
using nlohmann::ordered_json;

double now() { return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count(); }

// Seconds since 1970 of the newest event file; 0 when there is none.
std::int64_t newest_time(const fs::path& folder) {
  std::int64_t newest = 0;
  for (const auto& entry : fs::directory_iterator(folder)) {
    const std::string name = entry.path().filename().string();
    if (!name.starts_with(kEventFilePrefix)) continue;
    std::int64_t time = 0;
    std::from_chars(name.data() + kEventFilePrefix.size(), name.data() + name.size(), time);
    newest = std::max(newest, time);
  }
  return newest;
}

void add_table(const std::string& key, const ordered_json& table, std::vector<Scalar>& scalars) {
  double sum = 0.0;
  std::size_t layer = 0;
  for (const ordered_json& heads : table) {
    double layer_sum = 0.0;
    for (const ordered_json& value : heads) layer_sum += value.get<double>();
    const double mean = layer_sum / static_cast<double>(heads.size());
    scalars.push_back({fmt::format("{}/layer_{}", key, layer++), mean});
    sum += mean;
  }
  scalars.push_back({key + "/mean", sum / static_cast<double>(table.size())});
}

}  // namespace

TensorBoardLog::TensorBoardLog(fs::path run_directory, std::int64_t first_step)
    : run_directory_(std::move(run_directory)), first_step_(first_step) {}

void TensorBoardLog::open() {
  const double time = now();
  const std::int64_t stamp = std::max(static_cast<std::int64_t>(time), newest_time(run_directory_) + 1);
  file_.emplace(run_directory_ / fmt::format("{}{:010}.tda", kEventFilePrefix, stamp), 0);
  file_->append(tfrecord(file_version_event(time)) + tfrecord(session_start_event(time, first_step_)));
}

void TensorBoardLog::append(const ordered_json& line) {
  if (!file_) open();
  std::vector<Scalar> scalars;
  for (const auto& [key, value] : line.items()) {
    if (value.is_number() && key != "step") scalars.push_back({key, value.get<double>()});
    if (value.is_array()) add_table(key, value, scalars);
  }
  file_->append(tfrecord(scalars_event(now(), line.at("step").get<std::int64_t>(), scalars)));
}

void TensorBoardLog::sync() {
  if (file_) file_->sync();
}

}  // namespace tda
