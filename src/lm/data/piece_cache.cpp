#include "lm/data/piece_cache.h"

#include <cstring>

namespace tda {
namespace {

// Multiply-and-fold over 8-byte words; the table takes the low bits, so the high ones are folded in.
uint32_t hash_of(std::string_view piece) {
  uint64_t hash = piece.size() * 0x9e3779b97f4a7c15;
  const char* data = piece.data();
  size_t left = piece.size();
  while (left > 0) {
    uint64_t word = 0;
    const size_t bytes = left < sizeof(word) ? left : sizeof(word);
    std::memcpy(&word, data, bytes);
    hash = (hash ^ word) * 0xd6e8feb86659fd93;
    hash ^= hash >> 32;
    data += bytes;
    left -= bytes;
  }
  return static_cast<uint32_t>(hash ^ hash >> 16);
}

}  // namespace

PieceCache::PieceCache() : table_(kCapacity) {}

size_t PieceCache::find(std::string_view piece, uint32_t hash) const {
  size_t slot = hash & (kCapacity - 1);
  while (table_[slot].text_size != 0) {
    const Entry& entry = table_[slot];
    if (entry.hash == hash && entry.text_size == piece.size() &&
        std::memcmp(texts_.data() + entry.text_begin, piece.data(), piece.size()) == 0) {
      break;
    }
    slot = (slot + 1) & (kCapacity - 1);
  }
  return slot;
}

bool PieceCache::append(std::string_view piece, std::vector<int32_t>& ids) const {
  if (piece.size() > kLongestPiece) return false;
  const Entry& entry = table_[find(piece, hash_of(piece))];
  if (entry.text_size == 0) return false;
  const int32_t* first = ids_.data() + entry.ids_begin;
  ids.insert(ids.end(), first, first + entry.ids_size);
  return true;
}

void PieceCache::insert(std::string_view piece, std::span<const int32_t> ids) {
  if (piece.empty() || piece.size() > kLongestPiece || entries_ == kMaximumEntries) return;
  const uint32_t hash = hash_of(piece);
  table_[find(piece, hash)] = {hash, static_cast<uint32_t>(texts_.size()), static_cast<uint32_t>(ids_.size()),
                               static_cast<uint16_t>(piece.size()), static_cast<uint16_t>(ids.size())};
  texts_ += piece;
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  ++entries_;
}

}  // namespace tda
