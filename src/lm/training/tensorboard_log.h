// The numbers of metrics.jsonl as an event file that TensorBoard reads while the run goes on.
#pragma once

#include <cstdint>
#include <filesystem>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string_view>

#include "lm/training/append_file.h"

namespace tda {

// What the names of all event files begin with; behind it stand a time and a dot. TensorBoard reads the files of a
// folder in the order of their names, so each start takes a time later than those that are there.
inline constexpr std::string_view kEventFilePrefix = "events.out.tfevents.";

class TensorBoardLog {
 public:
  // Each start of a run writes a file of its own, made by the first append(). It begins by telling the reader to forget
  // what earlier files say about `first_step` and later steps: those are done again.
  TensorBoardLog(std::filesystem::path run_directory, std::int64_t first_step);

  // One line of metrics.jsonl. Tags are its keys; a [layer][head] table becomes KEY/mean and KEY/layer_N. Throws Error
  // when the disk refuses.
  void append(const nlohmann::ordered_json& line);

  // Waits until all of it is on the disk.
  void sync();

 private:
  void open();

  std::filesystem::path run_directory_;
  std::int64_t first_step_;
  std::optional<AppendFile> file_;
};

}  // namespace tda
