#include "lm/durable_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>
#include <zlib.h>

#include <cerrno>
#include <cstring>
#include <vector>

#include "lm/error.h"

namespace tda {
namespace {

[[noreturn]] void throw_system_error(const char* action, const std::filesystem::path& path, int error) {
  throw Error(fmt::format("cannot {} {}: {}", action, path.string(), std::strerror(error)));
}

class Descriptor {
 public:
  Descriptor(const std::filesystem::path& path, int flags, const char* action)
      : path_(path), value_(::open(path.c_str(), flags | O_CLOEXEC, 0666)) {
    if (value_ < 0) throw_system_error(action, path_, errno);
  }
  ~Descriptor() {
    if (value_ >= 0) ::close(value_);
  }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;

  int get() const { return value_; }
  void sync() const {
    // Some file systems cannot sync a folder and say EINVAL; there is nothing to wait for then.
    if (::fsync(value_) != 0 && errno != EINVAL) throw_system_error("write", path_, errno);
  }
  void write_all(std::string_view content) const {
    while (!content.empty()) {
      const ssize_t written = ::write(value_, content.data(), content.size());
      if (written < 0 && errno == EINTR) continue;
      if (written < 0) throw_system_error("write", path_, errno);
      content.remove_prefix(static_cast<std::size_t>(written));
    }
  }
  // Returns 0 at the end of the file.
  std::size_t read_some(char* buffer, std::size_t size) const {
    for (;;) {
      const ssize_t count = ::read(value_, buffer, size);
      if (count >= 0) return static_cast<std::size_t>(count);
      if (errno != EINTR) throw_system_error("read", path_, errno);
    }
  }

 private:
  std::filesystem::path path_;
  int value_;
};

std::filesystem::path temporary_of(std::filesystem::path path) { return path += ".writing"; }

constexpr std::size_t kReadSize = std::size_t{1} << 20;

}  // namespace

void write_file_durably(const std::filesystem::path& path, std::string_view content) {
  const Descriptor file(path, O_WRONLY | O_CREAT | O_TRUNC, "write");
  file.write_all(content);
  file.sync();
}

void require_writable(const std::filesystem::path& path) {
  if (path.empty()) throw_system_error("write", path, ENOENT);
  std::error_code error;
  const auto entry = std::filesystem::symlink_status(path, error);
  if (std::filesystem::exists(entry) && !std::filesystem::is_regular_file(entry)) {
    const auto target = std::filesystem::status(path, error);  // of a link
    using std::filesystem::file_type;
    const bool can_be_tried =
        std::filesystem::exists(target) && target.type() != file_type::fifo && target.type() != file_type::socket;
    if (can_be_tried) Descriptor(path, O_WRONLY, "write");
    return;
  }
  const std::filesystem::path temporary = temporary_of(path);
  const int descriptor = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
  if (descriptor < 0) throw_system_error("write", path, errno);
  ::close(descriptor);
  std::filesystem::remove(temporary, error);
}

void replace_file(const std::filesystem::path& path, std::string_view content) {
  std::error_code error;
  const auto status = std::filesystem::symlink_status(path, error);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status)) {
    write_file_durably(path, content);
    return;
  }
  const std::filesystem::path temporary = temporary_of(path);
  try {
    write_file_durably(temporary, content);
    std::filesystem::rename(temporary, path, error);
    if (error) throw_system_error("write", path, error.value());
  } catch (...) {
    std::filesystem::remove(temporary, error);
    throw;
  }
  const std::filesystem::path parent = path.parent_path();
  sync_to_disk(parent.empty() ? "." : parent);
}

void sync_to_disk(const std::filesystem::path& path) { Descriptor(path, O_RDONLY, "open").sync(); }

std::string read_file(const std::filesystem::path& path) {
  const Descriptor file(path, O_RDONLY, "read");
  std::string content;
  std::vector<char> buffer(kReadSize);
  while (const std::size_t count = file.read_some(buffer.data(), buffer.size())) content.append(buffer.data(), count);
  return content;
}

FileChecksum checksum_of_file(const std::filesystem::path& path) {
  const Descriptor file(path, O_RDONLY, "read");
  std::vector<char> buffer(kReadSize);
  uLong crc = ::crc32(0, nullptr, 0);
  FileChecksum result;
  while (const std::size_t count = file.read_some(buffer.data(), buffer.size())) {
    crc = ::crc32(crc, reinterpret_cast<const Bytef*>(buffer.data()), static_cast<uInt>(count));
    result.bytes += count;
  }
  result.crc32 = static_cast<std::uint32_t>(crc);
  return result;
}

std::uint32_t crc32_of(std::string_view content) {
  return static_cast<std::uint32_t>(
      ::crc32_z(::crc32(0, nullptr, 0), reinterpret_cast<const Bytef*>(content.data()), content.size()));
}

}  // namespace tda
