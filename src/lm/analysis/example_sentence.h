// A sentence to look at, and the labels of its tokens.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "lm/data/tokenizer.h"

namespace tda {

// The first sentence of 24 to `longest` bytes that starts with a capital letter and ends with a full stop, a question
// or an exclamation mark; the first `longest` bytes when there is none.
std::string find_sentence(std::string_view text, std::size_t longest = 60);

// Each token as text; bytes that are not UTF-8 by themselves as hexadecimal, for example <E2>.
std::vector<std::string> token_labels(const Tokenizer& tokenizer, std::span<const std::int32_t> ids);

}  // namespace tda
