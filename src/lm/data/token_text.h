#pragma once

#include <iosfwd>

#include "lm/data/tokenizer.h"

namespace tda {

/// Writes the ids of all text of `in` to `out`, separated by single blanks and ended by a newline (nothing for empty
/// text). Memory does not grow with the text. Throws Error when reading or writing fails.
void encode_stream(const Tokenizer& tokenizer, std::istream& in, std::ostream& out);

/// Writes the bytes of the ids of `in`, which are separated by any white space, to `out`. Throws Error, before anything
/// is written, for what is no id or out of range.
void decode_stream(const Tokenizer& tokenizer, std::istream& in, std::ostream& out);

}  // namespace tda
