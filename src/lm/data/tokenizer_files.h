#pragma once

#include <filesystem>
#include <string>

#include "lm/data/tokenizer.h"

namespace tda {

/// Writes `tokenizer.json` into `directory`: {"type": name, "vocabulary_size": …, "padded_vocabulary_size": …,
/// "end_of_text": …}. Throws Error when it cannot.
void write_tokenizer_description(const std::filesystem::path& directory, const Tokenizer& tokenizer);

/// The "type" of `tokenizer.json` in `directory`. Throws Error when the file is missing or damaged.
std::string read_tokenizer_type(const std::filesystem::path& directory);

}  // namespace tda
