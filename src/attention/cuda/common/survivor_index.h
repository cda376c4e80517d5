// Where the forward records which slices of the score matrix hold a survivor, so that the backward skips the rest.
//
// A slice is 64 query rows x 16 keys of one view, batch and query head; row tile t of a sequence covers its query rows
// 64 t .. 64 t + 63 and slice c its keys 16 c .. 16 c + 15, both counted inside the sequence (a batch element, or a
// packed document). Bit c % 32 of word c / 32 of a row tile's run of words is set when a pair of the slice that the
// mask lets through has s > tau (or a NaN score); a row tile that was computed densely may have every slice set that
// its rows see, so readers compare scores themselves. A forward kernel writes every word of a row tile that begins at
// or before the last key its rows see (bits of dead slices 0), so the memory needs no clearing; words behind are never
// read.
//
// The words of (view, head, row tile) start at word_offset(); heads vary slower than the row tiles of all sequences.
#pragma once

#include <cstdint>

#include "tda/attention_cuda.h"

#if defined(__CUDACC__)
#define TDA_HOST_DEVICE __host__ __device__
#else
#define TDA_HOST_DEVICE
#endif

namespace tda::cuda {

constexpr int kSliceRows = 64;
constexpr int kSliceKeys = 16;
constexpr int kSlicesPerWord = 32;
constexpr int kKeysPerWord = kSliceKeys * kSlicesPerWord;

struct SurvivorIndexLayout {
  std::int64_t row_tiles = 0;  // of all sequences together (of one head)
  std::int64_t query_heads = 0;
  std::int64_t words_per_tile = 0;  // one word covers 512 keys

  // Row tiles of the sequences before `sequence`. With packed documents an upper bound that needs no prefix sum:
  // first_query is the document's first row.
  TDA_HOST_DEVICE static std::int64_t first_row_tile(bool packed, std::int64_t sequence, std::int64_t first_query,
                                                     std::int64_t query_length) {
    return packed ? first_query / kSliceRows + sequence : sequence * ((query_length + kSliceRows - 1) / kSliceRows);
  }

  TDA_HOST_DEVICE std::int64_t word_offset(int view, std::int64_t query_head, std::int64_t row_tile) const {
    return ((view * query_heads + query_head) * row_tiles + row_tile) * words_per_tile;
  }
  TDA_HOST_DEVICE std::int64_t words(int views) const { return views * query_heads * row_tiles * words_per_tile; }
};

inline SurvivorIndexLayout survivor_index_layout(const AttentionShape& shape, const PackedDocuments* documents) {
  SurvivorIndexLayout layout;
  layout.query_heads = shape.query_heads;
  const std::int64_t longest_key = documents ? documents->longest_key : shape.key_length;
  layout.words_per_tile = (longest_key + kKeysPerWord - 1) / kKeysPerWord;
  layout.row_tiles = documents ? shape.query_length / kSliceRows + documents->count
                               : shape.batch * ((shape.query_length + kSliceRows - 1) / kSliceRows);
  return layout;
}

}  // namespace tda::cuda
