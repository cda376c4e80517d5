#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace tda {

/// Tokens of pieces that were met before. Most words of a text are repetitions, so that this lookup is nearly all the
/// work of encoding: an open-addressing table over two pools instead of a node per word. Takes at most about 20 MB; a
/// full cache keeps what it has.
class PieceCache {
 public:
  PieceCache();

  /// Appends the tokens of `piece` and returns true, or returns false when it is not there.
  bool append(std::string_view piece, std::vector<int32_t>& ids) const;

  /// Remembers the tokens of a piece for which append() has just returned false.
  void insert(std::string_view piece, std::span<const int32_t> ids);

 private:
  struct Entry {
    uint32_t hash = 0;
    uint32_t text_begin = 0;
    uint32_t ids_begin = 0;
    uint16_t text_size = 0;  // 0 marks a free entry
    uint16_t ids_size = 0;
  };

  static constexpr size_t kCapacity = size_t{1} << 18;
  static constexpr size_t kMaximumEntries = kCapacity / 2;
  static constexpr size_t kLongestPiece = 64;

  size_t find(std::string_view piece, uint32_t hash) const;

  std::vector<Entry> table_;
  std::string texts_;
  std::vector<int32_t> ids_;
  size_t entries_ = 0;
};

}  // namespace tda
