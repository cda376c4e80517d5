#pragma once

#include <sys/stat.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <span>

#include "lm/open_file.h"

namespace tda {

/// The `.bin` format of llm.c: 256 little-endian int32 (magic, version, count of tokens, zeros), then `count` uint16.
inline constexpr int32_t kShardMagic = 20240520;
inline constexpr int32_t kShardVersion = 1;
inline constexpr int64_t kShardHeaderBytes = 256 * 4;
/// Far below 2^31 bytes, so that readers which keep byte offsets in an int (llm.c) can read every shard.
inline constexpr int64_t kMaximumShardTokens = 100'000'000;

/// A shard on disk, open for reading. Read, not mapped: the touch of a page that a truncation took away ends a process,
/// a read that comes back short is an error like others.
class TokenShard {
 public:
  /// Throws Error naming the file and what is wrong: magic, version, or a count that disagrees with the file's size.
  explicit TokenShard(const std::filesystem::path& path);

  /// Tokens of the shard.
  int64_t size() const { return size_; }
  /// Reads tokens [first, first + out.size()), which the shard must have. Throws Error when the file was written to
  /// after it was opened, whatever it holds now: tokens of two states of a file must not end up in one run. A file that
  /// was replaced or removed as a whole stays readable as it was.
  void read(int64_t first, std::span<uint16_t> out) const;
  const std::filesystem::path& path() const { return file_.path(); }

 private:
  OpenFile file_;
  struct timespec modified_ {};
  int64_t size_ = 0;
};

/// Writes one shard. The count in the header is right only after close().
class TokenShardWriter {
 public:
  /// Creates or replaces `path`. Throws Error when it cannot.
  explicit TokenShardWriter(const std::filesystem::path& path);

  /// Appends ids of [0, 65536). Throws Error when the disk is full.
  void append(std::span<const int32_t> ids);
  int64_t count() const { return count_; }
  /// Completes the header and brings the file to the disk. Throws Error when the disk is full.
  void close();

 private:
  struct FileCloser {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  void write(const void* data, size_t bytes);

  std::filesystem::path path_;
  std::unique_ptr<std::FILE, FileCloser> file_;
  int64_t count_ = 0;
};

}  // namespace tda
