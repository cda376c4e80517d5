#pragma once

#include <cstddef>
#include <filesystem>
#include <memory>
#include <span>

namespace tda {

/// The bytes of a text file, unpacked on the way, in memory that does not grow with the file.
class TextSource {
 public:
  TextSource() = default;
  TextSource(const TextSource&) = delete;
  TextSource& operator=(const TextSource&) = delete;
  virtual ~TextSource() = default;

  /// Fills the beginning of `buffer` and returns how many bytes it put there, 0 at the end of the text. Throws Error
  /// naming the file when it cannot be read or its packed data is damaged or incomplete.
  virtual size_t read(std::span<char> buffer) = 0;
};

/// Opens plain text, xz, gzip or zstd (also several packed streams one after the other). The first bytes of the file
/// decide; a file called .xz, .gz or .zst that does not begin so is refused. `path` may be a pipe. Throws Error naming
/// the file when it cannot be opened.
std::unique_ptr<TextSource> open_text(const std::filesystem::path& path);

}  // namespace tda
