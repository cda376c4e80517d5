// A safetensors file is read whole or refused with an Error.
#include "lm/model/safetensors.h"

#include "file_in_memory.h"
#include "lm/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const tda::fuzz::FileInMemory file(data, size);
  try {
    const tda::SafetensorsFile tensors(file.path());
    for (const auto& [name, entry] : tensors.entries()) {
      const at::Tensor tensor = tensors.tensor(name);
      tda::fuzz::require(tensor.nbytes() == entry.end - entry.begin && tensor.sizes() == entry.shape);
    }
  } catch (const tda::Error&) {
  }
  return 0;
}
