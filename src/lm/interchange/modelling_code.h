// python/huggingface as it stood when the program was built: the model in Python, for Hugging Face transformers.
#pragma once

#include <array>
#include <string_view>

namespace tda {

struct ModellingFile {
  std::string_view name, content;
};

// configuration_tda.py, attention_tda.py, mechanisms_tda.py, modeling_tda.py.
std::array<ModellingFile, 4> modelling_code();

}  // namespace tda
