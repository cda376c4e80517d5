// What a general-purpose compressor makes of a text: the mark that a language model has to beat.
#pragma once

#include <optional>
#include <string_view>

namespace tda {

// Bits per byte of `xz -9e`, container included; nothing for an empty text. Throws std::bad_alloc when the encoder's
// 700 MB are not to be had.
std::optional<double> xz_bits_per_byte(std::string_view text);

}  // namespace tda
