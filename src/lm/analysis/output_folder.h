#pragma once

#include <filesystem>

namespace tda {

/// The folder that a report goes to, made before the work so that a path that cannot be written is refused at once. If
/// the work fails, what was made goes again, as long as nothing is in it.
class OutputFolder {
 public:
  /// Throws Error when the folder cannot be made, or a report in it not be written.
  explicit OutputFolder(const std::filesystem::path& path);
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;
  ~OutputFolder();

 private:
  std::filesystem::path path_;
  std::filesystem::path stays_;  // the part of the path that was there
};

}  // namespace tda
