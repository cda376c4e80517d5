#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <span>

namespace tda {

/// A regular file, open for reading as long as the object lives. Thousands may be open at once: where the process may
/// have no more, it asks the system for as many as it is allowed. Movable, not copyable.
class OpenFile {
 public:
  /// Throws Error naming the file when it is missing, no regular file or not readable.
  explicit OpenFile(const std::filesystem::path& path);
  OpenFile(OpenFile&& other) noexcept;
  OpenFile& operator=(OpenFile&& other) noexcept;
  ~OpenFile();

  /// Size, time of the last change and so on, as they are now.
  struct stat status() const;
  /// Reads out.size() bytes from `offset` on; false when the file ends before. Throws Error when the system refuses.
  bool read_at(std::int64_t offset, std::span<std::byte> out) const;
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
};

}  // namespace tda
