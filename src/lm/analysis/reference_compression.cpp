#include "lm/analysis/reference_compression.h"

#include <lzma.h>

#include <cstdint>
#include <new>
#include <stdexcept>
#include <vector>

namespace tda {

std::optional<double> xz_bits_per_byte(std::string_view text) {
  if (text.empty()) return std::nullopt;
  std::vector<std::uint8_t> packed(lzma_stream_buffer_bound(text.size()));
  std::size_t size = 0;
  const lzma_ret result = lzma_easy_buffer_encode(9 | LZMA_PRESET_EXTREME, LZMA_CHECK_CRC64, nullptr,
                                                  reinterpret_cast<const std::uint8_t*>(text.data()), text.size(),
                                                  packed.data(), &size, packed.size());
  if (result == LZMA_MEM_ERROR) throw std::bad_alloc();
  if (result != LZMA_OK) throw std::runtime_error("liblzma refused to compress the text");
  return 8.0 * static_cast<double>(size) / static_cast<double>(text.size());
}

}  // namespace tda
