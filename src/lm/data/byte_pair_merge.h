#pragma once

#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace tda {

/// Byte pair encoding of one piece (Sennrich, Haddow and Birch 2016, over bytes as in GPT-2): starting from single
/// bytes, the neighbours whose union has the lowest rank are joined, leftmost first, until no union has a rank. O(n log
/// n) in the length of the piece. Keeps its buffers between calls; one thread at a time.
class BytePairMerge {
 public:
  /// Token bytes to rank; holds every single byte.
  using Ranks = std::unordered_map<std::string_view, int32_t>;

  explicit BytePairMerge(const Ranks& ranks);

  /// Appends the tokens of `piece`, which is shorter than 2^32 bytes.
  void operator()(std::string_view piece, std::vector<int32_t>& ids);

 private:
  // A possible union of the part that begins at `begin` with its right neighbour, `length` bytes together. It is out of
  // date when a part of it has been joined with another since.
  struct Union {
    int32_t rank;
    uint32_t begin;
    uint32_t length;
    bool operator>(const Union& other) const { return rank != other.rank ? rank > other.rank : begin > other.begin; }
  };

  void consider(std::string_view piece, uint32_t begin);

  const Ranks& ranks_;
  size_t longest_token_ = 0;
  std::vector<uint32_t> length_;    // of the part that begins at this byte, 0 when none does
  std::vector<uint32_t> previous_;  // where the part to the left begins
  std::vector<Union> heap_;
};

}  // namespace tda
