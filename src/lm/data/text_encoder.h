#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>

#include "lm/data/tokenizer.h"

namespace tda {

/// Encodes one text that arrives in parts, so that the ids are those of the whole text. Holds back what could still
/// change; memory is bounded unless the text has no split_point() for long.
class TextEncoder {
 public:
  using Sink = std::function<void(std::span<const int32_t>)>;

  /// `tokenizer` must outlive the encoder; `sink` receives the ids in order.
  TextEncoder(const Tokenizer& tokenizer, Sink sink);

  void append(std::string_view part);
  /// The text ends here: its last ids go to the sink. A new text may follow.
  void finish();

 private:
  void encode(size_t bytes);

  const Tokenizer& tokenizer_;
  Sink sink_;
  std::string pending_;
  size_t next_attempt_;
};

}  // namespace tda
