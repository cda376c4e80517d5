#include "lm/open_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "lm/error.h"

namespace tda {
namespace {

Error cannot_read(const std::filesystem::path& path, const char* why) {
  return Error(fmt::format("cannot read {}: {}", path.string(), why));
}

// The usual limit of 1,024 open files is one that a process may lift itself.
bool allow_more_files() {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur == limit.rlim_max) return false;
  limit.rlim_cur = limit.rlim_max;
  return setrlimit(RLIMIT_NOFILE, &limit) == 0;
}

}  // namespace

OpenFile::OpenFile(const std::filesystem::path& path)
    : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
  if (descriptor_ < 0 && errno == EMFILE && allow_more_files()) {
    descriptor_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  }
  if (descriptor_ < 0) throw cannot_read(path, std::strerror(errno));
  struct stat found {};
  if (::fstat(descriptor_, &found) == 0 && S_ISREG(found.st_mode)) return;
  ::close(descriptor_);
  throw cannot_read(path, "not a regular file");
}

OpenFile::OpenFile(OpenFile&& other) noexcept
    : path_(std::move(other.path_)), descriptor_(std::exchange(other.descriptor_, -1)) {}

OpenFile& OpenFile::operator=(OpenFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  return *this;
}

OpenFile::~OpenFile() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

struct stat OpenFile::status() const {
  struct stat result {};
  if (::fstat(descriptor_, &result) != 0) throw cannot_read(path_, std::strerror(errno));
  return result;
}

bool OpenFile::read_at(std::int64_t offset, std::span<std::byte> out) const {
  while (!out.empty()) {
    const ssize_t count = ::pread(descriptor_, out.data(), out.size(), offset);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) throw cannot_read(path_, std::strerror(errno));
    if (count == 0) return false;
    out = out.subspan(static_cast<std::size_t>(count));
    offset += count;
  }
  return true;
}

}  // namespace tda
