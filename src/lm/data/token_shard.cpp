#include "lm/data/token_shard.h"

#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <cstring>
#include <vector>

#include "lm/error.h"

namespace tda {
namespace {

static_assert(std::endian::native == std::endian::little, "shards are read as they lie on the disk: little-endian");

using Header = std::array<int32_t, kShardHeaderBytes / 4>;

constexpr const char* kPrepareHint = "`tda data prepare` makes shards from text; a shard of llm.c works as it is";
constexpr const char* kIncompleteHint = "the file is damaged or its copy incomplete: copy it again or prepare it anew";
constexpr const char* kChangedHint = "put the shard back as it was; nothing may write to shards that are in use";

Error damaged(const std::filesystem::path& path, const std::string& what, const char* hint) {
  return Error(fmt::format("{}: {}", path.string(), what), hint);
}

}  // namespace

TokenShard::TokenShard(const std::filesystem::path& path) : file_(path) {
  const struct stat status = file_.status();
  const auto size = static_cast<int64_t>(status.st_size);
  modified_ = status.st_mtim;
  if (size < kShardHeaderBytes) {
    throw damaged(path, fmt::format("{} bytes are too few for the {} of a shard's header", size, kShardHeaderBytes),
                  kIncompleteHint);
  }
  Header header{};
  if (!file_.read_at(0, std::as_writable_bytes(std::span(header)))) {
    throw damaged(path, "the file was truncated while it was opened", kIncompleteHint);
  }
  if (header[0] != kShardMagic) {
    throw damaged(path, fmt::format("no token shard: magic number {}, expected {}", header[0], kShardMagic),
                  kPrepareHint);
  }
  if (header[1] != kShardVersion) {
    throw damaged(path, fmt::format("shard version {}, expected {} (uint16 tokens)", header[1], kShardVersion),
                  kPrepareHint);
  }
  const int64_t count = header[2];
  const int64_t expected = kShardHeaderBytes + 2 * count;
  if (count < 0 || size != expected) {
    throw damaged(path,
                  fmt::format("the header promises {} tokens ({} bytes), the file has {} bytes", count, expected, size),
                  kIncompleteHint);
  }
  size_ = count;
}

void TokenShard::read(int64_t first, std::span<uint16_t> out) const {
  const bool complete = file_.read_at(kShardHeaderBytes + 2 * first, std::as_writable_bytes(out));
  // Looked at after the read: what was written before the read ended shows here.
  const struct stat status = file_.status();
  const int64_t expected = kShardHeaderBytes + 2 * size_;
  if (!complete || status.st_size != expected) {
    throw damaged(path(),
                  fmt::format("the file had {} bytes when it was opened and has {} now", expected, status.st_size),
                  kChangedHint);
  }
  if (status.st_mtim.tv_sec != modified_.tv_sec || status.st_mtim.tv_nsec != modified_.tv_nsec) {
    throw damaged(path(), "the file was written to after it was opened", kChangedHint);
  }
}

TokenShardWriter::TokenShardWriter(const std::filesystem::path& path)
    : path_(path), file_(std::fopen(path.c_str(), "wb")) {
  if (!file_) throw Error(fmt::format("cannot write {}: {}", path.string(), std::strerror(errno)));
  const Header unfinished{};
  write(unfinished.data(), kShardHeaderBytes);
}

void TokenShardWriter::write(const void* data, size_t bytes) {
  if (bytes > 0 && std::fwrite(data, 1, bytes, file_.get()) != bytes) {
    throw Error(fmt::format("cannot write {}: {}", path_.string(), std::strerror(errno)));
  }
}

void TokenShardWriter::append(std::span<const int32_t> ids) {
  const std::vector<uint16_t> narrow(ids.begin(), ids.end());
  write(narrow.data(), narrow.size() * sizeof(uint16_t));
  count_ += static_cast<int64_t>(ids.size());
}

void TokenShardWriter::close() {
  Header header{};
  header[0] = kShardMagic;
  header[1] = kShardVersion;
  header[2] = static_cast<int32_t>(count_);
  const bool rewound = std::fseek(file_.get(), 0, SEEK_SET) == 0;
  if (rewound) write(header.data(), kShardHeaderBytes);
  if (!rewound || std::fflush(file_.get()) != 0 || fsync(fileno(file_.get())) != 0) {
    throw Error(fmt::format("cannot write {}: {}", path_.string(), std::strerror(errno)));
  }
  file_.reset();
}

}  // namespace tda
