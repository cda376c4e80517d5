// A file that only grows, in pieces that are written whole, until it is cut back to where a checkpoint saw it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string_view>

namespace tda {

class AppendFile {
 public:
  // Opens `path`, which may not exist yet, and drops what stands behind the first `keep_bytes` bytes. Throws Error when
  // the file is shorter, or the system refuses.
  AppendFile(std::filesystem::path path, std::int64_t keep_bytes);
  ~AppendFile();
  AppendFile(const AppendFile&) = delete;
  AppendFile& operator=(const AppendFile&) = delete;

  // In one system call, so that a reader never sees half of it while the disk has room. What a full disk took of it
  // goes again before Error is thrown.
  void append(std::string_view content);

  // Waits until all of it is on the disk.
  void sync();

  std::int64_t size() const { return size_; }

 private:
  std::filesystem::path path_;
  int descriptor_ = -1;
  std::int64_t size_ = 0;
};

}  // namespace tda
