// An append-only file of JSON lines (metrics.jsonl, samples.jsonl) that can be cut back to where a checkpoint saw it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>

namespace tda {

class LineLog {
 public:
  // Opens `path`, which may not exist yet, and drops what stands behind the first `keep_bytes` bytes: lines of steps
  // that a killed run did after its last checkpoint and that are about to be done again. Throws Error when the file is
  // shorter, or the system refuses.
  LineLog(std::filesystem::path path, std::int64_t keep_bytes);
  ~LineLog();
  LineLog(const LineLog&) = delete;
  LineLog& operator=(const LineLog&) = delete;

  // Writes one line in one system call, so that a reader never sees half of it while the disk has room.
  void append(const nlohmann::ordered_json& line);

  // Waits until all lines are on the disk: before a checkpoint that records size().
  void sync();

  std::int64_t size() const { return size_; }

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::int64_t size_ = 0;
};

}  // namespace tda
