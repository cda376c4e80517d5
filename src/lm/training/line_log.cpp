#include "lm/training/line_log.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <nlohmann/json.hpp>

#include "lm/error.h"

namespace tda {

LineLog::LineLog(std::filesystem::path path, std::int64_t keep_bytes) : path_(std::move(path)), size_(keep_bytes) {
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

LineLog::~LineLog() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void LineLog::append(const nlohmann::ordered_json& line) {
  // Bytes of a model that are not UTF-8 become U+FFFD; JSON has no other way to hold them.
  const std::string text = line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
  std::size_t written = 0;
  while (written < text.size()) {
    const ssize_t count = ::write(descriptor_, text.data() + written, text.size() - written);
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) {
      const int error = errno;
      // What was written of the line goes again, if the system lets us.
      [[maybe_unused]] const int ignored = ::ftruncate(descriptor_, size_);
      throw Error(fmt::format("cannot write {}: {}", path_.string(), std::strerror(error)));
    }
    written += static_cast<std::size_t>(count);
  }
  size_ += static_cast<std::int64_t>(text.size());
}

void LineLog::sync() {
  if (::fsync(descriptor_) != 0) {
    throw Error(fmt::format("cannot write {}: {}", path_.string(), std::strerror(errno)));
  }
}

}  // namespace tda
