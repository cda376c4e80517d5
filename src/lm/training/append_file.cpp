#include "lm/training/append_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "lm/error.h"

namespace tda {

AppendFile::AppendFile(std::filesystem::path path, std::int64_t keep_bytes)
    : path_(std::move(path)), size_(keep_bytes) {
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (descriptor_ < 0) throw Error(fmt::format("cannot write {}: {}", path_.string(), std::strerror(errno)));
  const std::int64_t found = ::lseek(descriptor_, 0, SEEK_END);
  if (found < keep_bytes) {
    ::close(descriptor_);
    throw Error(
        fmt::format("{} has {} bytes, the checkpoint was written when it had {}", path_.string(), found, keep_bytes),
        "put the file of this run back, or train into another --output");
  }
  if (::ftruncate(descriptor_, keep_bytes) != 0) {
    const int error = errno;
    ::close(descriptor_);
    throw Error(fmt::format("cannot write {}: {}", path_.string(), std::strerror(error)));
  }
}

AppendFile::~AppendFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void AppendFile::append(std::string_view content) {
  std::size_t written = 0;
  while (written < content.size()) {
    const ssize_t count = ::write(descriptor_, content.data() + written, content.size() - written);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      const int error = errno;
      // What was written of it goes again, if the system lets us.
      [[maybe_unused]] const int ignored = ::ftruncate(descriptor_, size_);
      throw Error(fmt::format("cannot write {}: {}", path_.string(), std::strerror(error)));
    }
    written += static_cast<std::size_t>(count);
  }
  size_ += static_cast<std::int64_t>(content.size());
}

void AppendFile::sync() {
  if (::fsync(descriptor_) != 0) {
    throw Error(fmt::format("cannot write {}: {}", path_.string(), std::strerror(errno)));
  }
}

}  // namespace tda
