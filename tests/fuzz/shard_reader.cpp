// A shard is read whole or refused with an Error.
#include "file_in_memory.h"
#include "lm/data/token_stream.h"
#include "lm/error.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const tda::fuzz::FileInMemory file(data, size);
  try {
    const tda::TokenStream stream({file.path()}, 257);
    std::vector<std::int64_t> ids(static_cast<std::size_t>(stream.size()));
    stream.copy(0, stream.size(), ids.data());
    for (const std::int64_t id : ids) tda::fuzz::require(id >= 0 && id < 257);
  } catch (const tda::Error&) {
  }
  return 0;
}
