// The folder of one run: recipe.toml, metrics.jsonl, samples.jsonl, event files and checkpoints/, and who may write
// there.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

namespace tda {

// Throws Error when a run may not be written to `path`: it is not empty and `resume` is false, or it holds anything
// that no run writes. Changes nothing.
void require_usable_output(const std::filesystem::path& path, bool resume);

// Where things lie in a run directory, whoever holds it.
struct RunPaths {
  std::filesystem::path path;
  std::filesystem::path recipe() const { return path / "recipe.toml"; }
  std::filesystem::path metrics() const { return path / "metrics.jsonl"; }
  std::filesystem::path samples() const { return path / "samples.jsonl"; }
};

class RunDirectory {
 public:
  // Takes `path` for this process until the object dies. Creates it when absent. Throws Error as above, when another
  // process trains in it, or when it cannot be written.
  RunDirectory(std::filesystem::path path, bool resume);
  ~RunDirectory();
  RunDirectory(const RunDirectory&) = delete;
  RunDirectory& operator=(const RunDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }

  // The newest step folder, checked; nullopt when there is none. A damaged one is refused, not passed over: going on
  // from an older step would throw away work, which only the user may decide. The hint says how.
  std::optional<std::filesystem::path> newest_checkpoint() const;

 private:
  std::filesystem::path path_;
  int lock_ = -1;
};

}  // namespace tda
