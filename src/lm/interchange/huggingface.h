// A checkpoint as a model folder of Hugging Face transformers.
#pragma once

#include <filesystem>

namespace tda {

// Writes into `folder`, which must be absent or empty and appears whole or not at all: config.json, model.safetensors,
// generation_config.json, tokenizer.json, tokenizer_config.json, and the model in Python, so that
// AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True) loads it without a network. `checkpoint` is a
// step folder or a run directory. Throws Error when it cannot be read, or the folder cannot be written.
void export_to_huggingface(const std::filesystem::path& checkpoint, const std::filesystem::path& folder);

}  // namespace tda
