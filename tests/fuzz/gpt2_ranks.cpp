// A file of ranks is understood or refused with an Error. Input is put behind 50,256 - 64 good lines, so that it can
// also complete a good file.
#include "lm/data/gpt2_ranks.h"

#include <string>

#include "file_in_memory.h"
#include "lm/error.h"
#include "synthetic_ranks.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const std::string start = tda::fuzz::tiktoken_lines(tda::kGpt2Ranks - 64);
  // Half of the inputs stand alone: whole files are slow to read.
  std::string text = size > 0 && data[0] % 2 == 0 ? start : std::string();
  if (size > 0) text.append(reinterpret_cast<const char*>(data + 1), size - 1);
  const tda::fuzz::FileInMemory file(reinterpret_cast<const std::uint8_t*>(text.data()), text.size());
  try {
    tda::fuzz::require(tda::read_gpt2_ranks(file.path()).size() == tda::kGpt2Ranks);
  } catch (const tda::Error&) {
  }
  return 0;
}
