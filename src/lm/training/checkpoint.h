// Step folders: what a run leaves behind to be resumed, sampled from or scored, and how one is found and trusted.
//
//   RUN/checkpoints/step-000123/   the state after 123 optimizer steps
//     manifest.json                size and CRC-32 of every other file of the folder
//     model.safetensors, config.json, tokenizer files, and the trainer's own files (docs/training.md)
//
// A step folder appears by one rename, after everything in it is on the disk, so a name step-* is always complete. A
// writer that is killed leaves only a hidden folder, which no reader looks at and the next trainer removes.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace tda {

// `path` is a step folder, or a run directory, which stands for its newest valid step. Returns a step folder whose
// every file has been checked against its manifest. Throws tda::Error when there is none: the message names the damaged
// file, the hint offers the newest valid step before it. In a run directory damaged newer steps are passed over with a
// warning on stderr that names the damaged file.
std::filesystem::path resolve_checkpoint(const std::filesystem::path& path);

struct CheckpointDamage {
  std::string file;    // relative to the step folder
  std::string reason;  // what is wrong with it, for "FILE REASON"
};
// Reads the whole step folder and compares it with its manifest; nullopt when it is intact.
std::optional<CheckpointDamage> find_damage(const std::filesystem::path& step_directory);

struct CheckpointEntry {
  std::int64_t step = 0;
  std::filesystem::path directory;
};
// The step folders of a run, oldest first, unchecked; empty when there is none.
std::vector<CheckpointEntry> list_checkpoints(const std::filesystem::path& run_directory);

std::filesystem::path checkpoint_directory(const std::filesystem::path& run_directory, std::int64_t step);

// Writes one step folder: put files into directory(), then commit(). Without a commit nothing is left behind.
class CheckpointWriter {
 public:
  CheckpointWriter(const std::filesystem::path& run_directory, std::int64_t step);
  ~CheckpointWriter();
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  const std::filesystem::path& directory() const { return temporary_; }
  void commit();

 private:
  std::filesystem::path temporary_;
  std::filesystem::path final_;
  std::int64_t step_;
};

// Removes all but the newest `keep` step folders; keep = 0 keeps all.
void remove_old_checkpoints(const std::filesystem::path& run_directory, std::int64_t keep);

// Removes what killed writers left. Only for the one process that trains in this run directory.
void remove_unfinished_checkpoints(const std::filesystem::path& run_directory);

}  // namespace tda
