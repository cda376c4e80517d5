#include "lm/staged_folder.h"

#include <fmt/format.h>
#include <unistd.h>

#include <system_error>

#include "lm/durable_file.h"
#include "lm/error.h"

namespace tda {

namespace fs = std::filesystem;

StagedFolder::StagedFolder(const fs::path& target) : target_(fs::absolute(target).lexically_normal()) {
  if (!target_.has_filename()) target_ = target_.parent_path();  // "out/" means "out"
  std::error_code error;
  if (fs::exists(target_, error) && !(fs::is_directory(target_, error) && fs::is_empty(target_, error))) {
    throw Error(fmt::format("output {} exists and is not an empty folder", target.string()),
                "name another folder, or remove this one first");
  }
  const fs::path parent = target_.parent_path();
  fs::create_directories(parent, error);
  staging_ = parent / fmt::format(".{}.unfinished-{}", target_.filename().string(), getpid());
  if (!error) fs::create_directory(staging_, error);
  if (error) throw Error(fmt::format("cannot create {}: {}", target.string(), error.message()));
}

StagedFolder::~StagedFolder() {
  std::error_code ignored;
  if (!staging_.empty()) fs::remove_all(staging_, ignored);
}

void StagedFolder::commit() {
  sync_to_disk(staging_);
  std::error_code error;
  fs::rename(staging_, target_, error);
  if (error) throw Error(fmt::format("cannot create {}: {}", target_.string(), error.message()));
  staging_.clear();
  sync_to_disk(target_.parent_path());
}

}  // namespace tda
