// CRC-32C (Castagnoli), the checksum of TFRecord files; zlib's crc32 has another polynomial.
#pragma once

#include <cstdint>
#include <string_view>

namespace tda {

// Reflected polynomial 0x82F63B78, start and final XOR 0xFFFFFFFF (RFC 3720, appendix B.4).
std::uint32_t crc32c(std::string_view content);

}  // namespace tda
