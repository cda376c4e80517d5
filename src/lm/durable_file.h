// Writing files so that they survive a crash, and the checksum that shows whether they did.
//
// Every function throws tda::Error, naming the path and the system's reason, when the operating system refuses: a full
// disk, a size limit, a read-only folder, a missing file.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

namespace tda {

// Creates or truncates `path`, writes `content` and waits until it is on the disk.
void write_file_durably(const std::filesystem::path& path, std::string_view content);

// Replaces `path` as a whole: a reader, or a crash, sees the old content or the new one and never a part. A device, a
// pipe or a link is written where it stands, since a rename would put a file in its place (/dev/null, say).
void replace_file(const std::filesystem::path& path, std::string_view content);

// Throws what replace_file() would throw for a path that cannot be written, before the work whose result it shall hold.
// Leaves nothing behind. A pipe is not tried, since its reader would see it end.
void require_writable(const std::filesystem::path& path);

// Waits until the content of a file, or the entries of a folder, are on the disk.
void sync_to_disk(const std::filesystem::path& path);

std::string read_file(const std::filesystem::path& path);

struct FileChecksum {
  std::uint64_t bytes = 0;
  std::uint32_t crc32 = 0;  // CRC-32 of zlib, gzip and PNG (polynomial 0xEDB88320)
  bool operator==(const FileChecksum&) const = default;
};
FileChecksum checksum_of_file(const std::filesystem::path& path);
std::uint32_t crc32_of(std::string_view content);

}  // namespace tda
