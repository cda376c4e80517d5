#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace tda {

/// A file of the disk seen as read-only memory. Pages are read when touched, so that opening costs nothing whatever the
/// size. The file must not be truncated while it is mapped. Movable, not copyable.
class MappedFile {
 public:
  /// Throws Error naming the file when it is missing, no regular file or not readable.
  explicit MappedFile(const std::filesystem::path& path);
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  std::span<const std::byte> bytes() const { return {data_, size_}; }
  const std::filesystem::path& path() const { return path_; }

 private:
  std::filesystem::path path_;
  const std::byte* data_ = nullptr;
  size_t size_ = 0;
};

}  // namespace tda
