// An append-only file of JSON lines (metrics.jsonl, samples.jsonl) that can be cut back to where a checkpoint saw it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <utility>

#include "lm/training/append_file.h"

namespace tda {

class LineLog {
 public:
  // Keeps the first `keep_bytes` bytes. What stands behind them are lines of steps that a killed run did after its last
  // checkpoint and that are about to be done again. Throws Error as AppendFile does.
  LineLog(std::filesystem::path path, std::int64_t keep_bytes) : file_(std::move(path), keep_bytes) {}

  // Writes one line as a whole.
  void append(const nlohmann::ordered_json& line);

  // Waits until all lines are on the disk: before a checkpoint that records size().
  void sync() { file_.sync(); }

  std::int64_t size() const { return file_.size(); }

 private:
  AppendFile file_;
};

}  // namespace tda
