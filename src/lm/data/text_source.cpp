#include "lm/data/text_source.h"

#include <fmt/format.h>
#include <lzma.h>
#include <zlib.h>
#include <zstd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <new>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lm/error.h"

namespace tda {
namespace {

namespace fs = std::filesystem;

constexpr size_t kInputBytes = size_t{1} << 17;

/// Bytes of a file in the order of the disk; the first few can be looked at before they are read.
class RawFile {
 public:
  explicit RawFile(const fs::path& path) : path_(path), file_(std::fopen(path.c_str(), "rb")) {
    if (!file_) throw failure(std::strerror(errno));
    beginning_.resize(8);
    beginning_.resize(read_file(beginning_));
  }

  std::string_view beginning() const { return {beginning_.data(), beginning_.size()}; }

  size_t read(std::span<char> buffer) {
    if (beginning_taken_ < beginning_.size()) {
      const size_t count = std::min(buffer.size(), beginning_.size() - beginning_taken_);
      std::memcpy(buffer.data(), beginning_.data() + beginning_taken_, count);
      beginning_taken_ += count;
      return count;
    }
    return read_file(buffer);
  }

  Error failure(const std::string& why) const { return Error(fmt::format("cannot read {}: {}", path_.string(), why)); }
  Error damage(const char* format) const {
    return Error(fmt::format("{}: the {} data is damaged or incomplete", path_.string(), format),
                 "copy or download the file again");
  }

 private:
  struct Closer {
    void operator()(std::FILE* file) const { std::fclose(file); }
  };

  size_t read_file(std::span<char> buffer) {
    const size_t count = std::fread(buffer.data(), 1, buffer.size(), file_.get());
    if (count < buffer.size() && std::ferror(file_.get()) != 0) throw failure(std::strerror(errno));
    return count;
  }

  fs::path path_;
  std::unique_ptr<std::FILE, Closer> file_;
  std::vector<char> beginning_;
  size_t beginning_taken_ = 0;
};

class PlainText final : public TextSource {
 public:
  explicit PlainText(RawFile file) : file_(std::move(file)) {}
  size_t read(std::span<char> buffer) override { return file_.read(buffer); }

 private:
  RawFile file_;
};

class XzText final : public TextSource {
 public:
  explicit XzText(RawFile file) : file_(std::move(file)), input_(kInputBytes) {
    if (lzma_stream_decoder(&stream_, UINT64_MAX, LZMA_CONCATENATED) != LZMA_OK) throw std::bad_alloc();
  }
  ~XzText() override { lzma_end(&stream_); }

  size_t read(std::span<char> buffer) override {
    stream_.next_out = reinterpret_cast<uint8_t*>(buffer.data());
    stream_.avail_out = buffer.size();
    while (!ended_ && stream_.avail_out > 0) {
      if (stream_.avail_in == 0 && !input_ended_) {
        stream_.avail_in = file_.read(input_);
        stream_.next_in = reinterpret_cast<const uint8_t*>(input_.data());
        input_ended_ = stream_.avail_in == 0;
      }
      const lzma_ret result = lzma_code(&stream_, input_ended_ ? LZMA_FINISH : LZMA_RUN);
      if (result == LZMA_MEM_ERROR) throw std::bad_alloc();
      if (result != LZMA_OK && result != LZMA_STREAM_END) throw file_.damage("xz");
      ended_ = result == LZMA_STREAM_END;
    }
    return buffer.size() - stream_.avail_out;
  }

 private:
  RawFile file_;
  std::vector<char> input_;
  lzma_stream stream_ = LZMA_STREAM_INIT;
  bool input_ended_ = false;
  bool ended_ = false;
};

class GzipText final : public TextSource {
 public:
  explicit GzipText(RawFile file) : file_(std::move(file)), input_(kInputBytes) {
    constexpr int kGzipOnly = 16;
    if (inflateInit2(&stream_, MAX_WBITS + kGzipOnly) != Z_OK) throw std::bad_alloc();
  }
  ~GzipText() override { inflateEnd(&stream_); }

  size_t read(std::span<char> buffer) override {
    stream_.next_out = reinterpret_cast<Bytef*>(buffer.data());
    stream_.avail_out = static_cast<uInt>(buffer.size());
    while (stream_.avail_out > 0) {
      if (stream_.avail_in == 0) {
        stream_.avail_in = static_cast<uInt>(file_.read(input_));
        stream_.next_in = reinterpret_cast<Bytef*>(input_.data());
      }
      if (stream_.avail_in == 0) {
        if (!between_members_) throw file_.damage("gzip");
        break;
      }
      if (between_members_) inflateReset(&stream_);
      const int result = inflate(&stream_, Z_NO_FLUSH);
      if (result == Z_MEM_ERROR) throw std::bad_alloc();
      if (result != Z_OK && result != Z_STREAM_END) throw file_.damage("gzip");
      between_members_ = result == Z_STREAM_END;
    }
    return buffer.size() - stream_.avail_out;
  }

 private:
  RawFile file_;
  std::vector<char> input_;
  z_stream stream_{};
  bool between_members_ = false;
};

class ZstdText final : public TextSource {
 public:
  explicit ZstdText(RawFile file) : file_(std::move(file)), input_(kInputBytes), stream_(ZSTD_createDStream()) {
    if (!stream_) throw std::bad_alloc();
  }

  size_t read(std::span<char> buffer) override {
    ZSTD_outBuffer output{buffer.data(), buffer.size(), 0};
    while (output.pos < output.size) {
      if (chunk_.pos == chunk_.size) {
        chunk_ = {input_.data(), file_.read(input_), 0};
        if (chunk_.size == 0) {
          // What the decoder still holds comes out without further input.
          const size_t before = output.pos;
          if (within_frame_) within_frame_ = decode(output);
          if (within_frame_ && output.pos == before) throw file_.damage("zstd");
          if (!within_frame_) break;
          continue;
        }
      }
      within_frame_ = decode(output);
    }
    return output.pos;
  }

 private:
  // Returns whether the frame goes on.
  bool decode(ZSTD_outBuffer& output) {
    const size_t result = ZSTD_decompressStream(stream_.get(), &output, &chunk_);
    if (ZSTD_isError(result) != 0) throw file_.damage("zstd");
    return result != 0;
  }

  struct Freer {
    void operator()(ZSTD_DStream* stream) const { ZSTD_freeDStream(stream); }
  };

  RawFile file_;
  std::vector<char> input_;
  std::unique_ptr<ZSTD_DStream, Freer> stream_;
  ZSTD_inBuffer chunk_{nullptr, 0, 0};
  bool within_frame_ = false;
};

struct Format {
  std::string_view extension;
  std::string_view magic;
  std::unique_ptr<TextSource> (*open)(RawFile);
};

template <typename Source>
std::unique_ptr<TextSource> open_as(RawFile file) {
  return std::make_unique<Source>(std::move(file));
}

constexpr std::array<Format, 3> kPackedFormats = {
    Format{".xz",
           {"\xfd"
            "7zXZ\0",
            6},
           open_as<XzText>},
    Format{".gz", "\x1f\x8b", open_as<GzipText>},
    Format{".zst", "\x28\xb5\x2f\xfd", open_as<ZstdText>},
};

}  // namespace

std::unique_ptr<TextSource> open_text(const fs::path& path) {
  RawFile file(path);
  for (const Format& format : kPackedFormats) {
    if (file.beginning().starts_with(format.magic)) return format.open(std::move(file));
    if (path.extension() == format.extension) {
      throw Error(fmt::format("{} does not begin as a {} file does", path.string(), format.extension),
                  "rename it if it is plain text; copy or download it again if it is damaged");
    }
  }
  return std::make_unique<PlainText>(std::move(file));
}

}  // namespace tda
