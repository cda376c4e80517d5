#include "lm/analysis/reference_compression.h"

#include <lzma.h>

#include <cstdint>
#include <new>
#include <stdexcept>
#include <vector>

namespace tda {

std::optional<double> xz_bits_per_byte(std::string_view text) {
  if (text.empty()) return std::nullopt;
  // The streaming encoder, as the program has it: encoding a buffer at once would add sizes to the block header.
  lzma_stream stream = LZMA_STREAM_INIT;
  lzma_ret result = lzma_easy_encoder(&stream, 9 | LZMA_PRESET_EXTREME, LZMA_CHECK_CRC64);
  std::vector<std::uint8_t> packed(lzma_stream_buffer_bound(text.size()));
  if (result == LZMA_OK) {
    stream.next_in = reinterpret_cast<const std::uint8_t*>(text.data());
    stream.avail_in = text.size();
    stream.next_out = packed.data();
    stream.avail_out = packed.size();
    result = lzma_code(&stream, LZMA_FINISH);
  }
  const std::uint64_t size = stream.total_out;
  lzma_end(&stream);
  if (result == LZMA_MEM_ERROR) throw std::bad_alloc();
  if (result != LZMA_STREAM_END) throw std::runtime_error("liblzma refused to compress the text");
  return 8.0 * static_cast<double>(size) / static_cast<double>(text.size());
}

}  // namespace tda
