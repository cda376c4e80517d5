#include "lm/training/run_directory.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <string_view>

#include "lm/error.h"
#include "lm/training/checkpoint.h"
#include "lm/training/tensorboard_log.h"

namespace tda {
namespace {

namespace fs = std::filesystem;

// The `.writing` file is what a kill in the middle of replacing the recipe leaves.
constexpr std::array<std::string_view, 5> kOwnNames = {"recipe.toml", "recipe.toml.writing", "metrics.jsonl",
                                                       "samples.jsonl", "checkpoints"};

bool is_own(const std::string& name) {
  return name.starts_with(kEventFilePrefix) || std::find(kOwnNames.begin(), kOwnNames.end(), name) != kOwnNames.end();
}

}  // namespace

void require_usable_output(const fs::path& path, bool resume) {
  std::error_code error;
  if (!fs::exists(path, error)) return;
  if (!fs::is_directory(path, error)) throw Error(fmt::format("output {} exists and is not a folder", path.string()));
  fs::directory_iterator entries(path, error);
  if (error) throw Error(fmt::format("cannot read output {}: {}", path.string(), error.message()));
  if (entries == fs::directory_iterator()) return;
  if (!resume) {
    throw Error(fmt::format("output {} is not empty", path.string()),
                "pass --resume to go on with the run in it, or choose another --output");
  }
  for (const auto& entry : entries) {
    const std::string name = entry.path().filename().string();
    if (!is_own(name)) {
      throw Error(fmt::format("output {} is no run directory: it holds {}", path.string(), name),
                  "choose another --output");
    }
  }
}

RunDirectory::RunDirectory(fs::path path, bool resume) : path_(std::move(path)) {
  require_usable_output(path_, resume);
  std::error_code error;
  fs::create_directories(path_, error);
  if (error) throw Error(fmt::format("cannot create output {}: {}", path_.string(), error.message()));
  // The kernel gives the lock back however the process ends, so no stale lock can stay.
  lock_ = ::open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (lock_ < 0) throw Error(fmt::format("cannot open output {}: {}", path_.string(), std::strerror(errno)));
  if (::flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    ::close(lock_);
    throw Error(fmt::format("another process is training in {}", path_.string()),
                "wait for it, stop it, or choose another --output");
  }
}

RunDirectory::~RunDirectory() {
  if (lock_ >= 0) ::close(lock_);
}

std::optional<fs::path> RunDirectory::newest_checkpoint() const {
  const auto entries = list_checkpoints(path_);
  if (entries.empty()) return std::nullopt;
  const fs::path& newest = entries.back().directory;
  const auto damage = find_damage(newest);
  if (!damage) return newest;
  std::string hint = "no earlier checkpoint of this run is intact; start again in another --output";
  for (auto entry = entries.rbegin() + 1; entry != entries.rend(); ++entry) {
    if (find_damage(entry->directory)) continue;
    hint = fmt::format("the one before it is intact: remove {} to resume from {}", newest.string(),
                       entry->directory.filename().string());
    break;
  }
  throw Error(fmt::format("checkpoint {} is damaged: {} {}", newest.string(), damage->file, damage->reason), hint);
}

}  // namespace tda
