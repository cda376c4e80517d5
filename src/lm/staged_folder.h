#pragma once

#include <filesystem>

namespace tda {

/// A folder that appears whole or not at all: files are put into a hidden folder beside it, which commit() renames.
/// Without a commit nothing is left behind.
class StagedFolder {
 public:
  /// Throws Error when `target` exists and is not an empty folder, or when nothing can be created beside it.
  explicit StagedFolder(const std::filesystem::path& target);
  StagedFolder(const StagedFolder&) = delete;
  StagedFolder& operator=(const StagedFolder&) = delete;
  ~StagedFolder();

  /// Where to put the files.
  const std::filesystem::path& directory() const { return staging_; }

  void commit();

 private:
  std::filesystem::path target_;
  std::filesystem::path staging_;
};

}  // namespace tda
