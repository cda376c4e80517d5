// Our tokenizers in the format of Hugging Face's `tokenizers`: a byte-level BPE, which for `byte` has no merges.
#pragma once

#include <cstdint>
#include <nlohmann/json_fwd.hpp>

#include "lm/data/tokenizer.h"

namespace tda {

// tokenizer.json. Gives the ids of Tokenizer::encode() with end-of-text before them, as our models expect it; only text
// that spells `<|endoftext|>` differs: there it stands for the token itself.
nlohmann::ordered_json huggingface_tokenizer(const Tokenizer& tokenizer);

// tokenizer_config.json of a model with this context.
nlohmann::ordered_json huggingface_tokenizer_config(std::int64_t context);

}  // namespace tda
