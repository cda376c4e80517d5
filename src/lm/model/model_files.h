// A model on disk: model.safetensors (fp32 master weights) and config.json in one folder.
#pragma once

#include <filesystem>
#include <memory>

#include "lm/model/gpt.h"

namespace tda {

// Writes both files into an existing folder. Not atomic by itself: see training/checkpoint.h.
void save_model(const std::filesystem::path& folder, const Gpt& model);

// Reads config.json alone.
ModelConfig load_model_config(const std::filesystem::path& folder);

// Refuses a folder whose files are missing, damaged, or do not fit each other: Error names file, tensor, and the shape
// found and expected. fp32 on the CPU.
std::unique_ptr<Gpt> load_model(const std::filesystem::path& folder);

// Copies the tensors of one file into a model that exists, with the same checks.
void load_parameters(const std::filesystem::path& file, Gpt& model);

}  // namespace tda
