#include "lm/data/text_encoder.h"

#include <algorithm>
#include <utility>

namespace tda {
namespace {

constexpr size_t kFirstAttempt = size_t{1} << 16;

}  // namespace

TextEncoder::TextEncoder(const Tokenizer& tokenizer, Sink sink)
    : tokenizer_(tokenizer), sink_(std::move(sink)), next_attempt_(kFirstAttempt) {}

void TextEncoder::append(std::string_view part) {
  pending_ += part;
  if (pending_.size() < next_attempt_) return;
  encode(tokenizer_.split_point(pending_));
  // Twice what is left, so that text without a place to split is not searched again and again.
  next_attempt_ = std::max(kFirstAttempt, 2 * pending_.size());
}

void TextEncoder::finish() {
  encode(pending_.size());
  next_attempt_ = kFirstAttempt;
}

void TextEncoder::encode(size_t bytes) {
  if (bytes == 0) return;
  sink_(tokenizer_.encode(std::string_view(pending_).substr(0, bytes)));
  pending_.erase(0, bytes);
}

}  // namespace tda
