// Any bytes come back from their tokens, and text may be cut where split_point() says.
#include "file_in_memory.h"
#include "lm/data/gpt2_tokenizer.h"
#include "synthetic_ranks.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  static const tda::Gpt2Tokenizer tokenizer(tda::fuzz::synthetic_ranks());
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto ids = tokenizer.encode(text);
  for (const std::int32_t id : ids) tda::fuzz::require(id >= 0 && id < tda::kGpt2Ranks);
  tda::fuzz::require(tokenizer.decode(ids) == text);

  const std::size_t cut = tokenizer.split_point(text);
  tda::fuzz::require(cut <= size);
  auto parts = tokenizer.encode(text.substr(0, cut));
  const auto rest = tokenizer.encode(text.substr(cut));
  parts.insert(parts.end(), rest.begin(), rest.end());
  tda::fuzz::require(parts == ids);
  return 0;
}
