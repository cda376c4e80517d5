// Whether bytes are text that JSON and TOML can hold, and how to show them in one line when they are not.
#pragma once

#include <string>
#include <string_view>

namespace tda {

// As RFC 3629 has it: shortest forms only, no surrogates, nothing beyond U+10FFFF.
bool is_utf8(std::string_view bytes);

// The text with control characters and bytes that are no UTF-8 written as \xHH.
std::string printable(std::string_view bytes);

}  // namespace tda
