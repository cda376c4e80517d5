#include "lm/data/byte_pair_merge.h"

#include <algorithm>
#include <functional>

namespace tda {

BytePairMerge::BytePairMerge(const Ranks& ranks) : ranks_(ranks) {
  for (const auto& [token, rank] : ranks) longest_token_ = std::max(longest_token_, token.size());
}

void BytePairMerge::consider(std::string_view piece, uint32_t begin) {
  const uint32_t right = begin + length_[begin];
  if (right >= piece.size()) return;
  const uint32_t length = length_[begin] + length_[right];
  if (length > longest_token_) return;
  const auto found = ranks_.find(piece.substr(begin, length));
  if (found == ranks_.end()) return;
  heap_.push_back({found->second, begin, length});
  std::ranges::push_heap(heap_, std::greater<>());
}

void BytePairMerge::operator()(std::string_view piece, std::vector<int32_t>& ids) {
  const auto size = static_cast<uint32_t>(piece.size());
  length_.assign(size, 1);
  previous_.resize(size);
  heap_.clear();
  for (uint32_t i = 0; i < size; ++i) previous_[i] = i - 1;
  for (uint32_t i = 0; i < size; ++i) consider(piece, i);
  while (!heap_.empty()) {
    const Union best = heap_.front();
    std::ranges::pop_heap(heap_, std::greater<>());
    heap_.pop_back();
    const uint32_t begin = best.begin;
    const uint32_t right = begin + length_[begin];
    const bool current = length_[begin] != 0 && right < size && length_[begin] + length_[right] == best.length;
    if (!current) continue;
    length_[begin] = best.length;
    length_[right] = 0;
    if (begin + best.length < size) previous_[begin + best.length] = begin;
    consider(piece, begin);
    if (begin > 0) consider(piece, previous_[begin]);
  }
  for (uint32_t i = 0; i < size; i += length_[i]) ids.push_back(ranks_.at(piece.substr(i, length_[i])));
}

}  // namespace tda
