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

#include <cstddef>
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

// Behind the words, for long sequences of the inputs that the sm90 forward takes: the keys of each row's survivors,
// when they are few. A row's list is 64 bytes: its number of survivors, then their keys, counted inside the sequence.
// Entries have 16 bits where every key fits (key_length <= kNarrowKeys), so that a list holds 31 keys, and otherwise 32
// bits, so that it holds 15; the shape alone decides. The keys of a list have an order that depends on the scores
// alone, not ascending. Entries behind the last key are not written.
//
// In front of the lists is the number of pairs of each (view, query head, batch). A row with more survivors than a list
// holds sets its bit 31: the head is incomplete, and none of its lists is to be read. Neither are those of row tiles
// without a live slice. Other kernels mark everything as incomplete.
constexpr int kListWords = 16;
constexpr std::int64_t kNarrowKeys = 65536;
constexpr std::uint32_t kIncompleteHead = 0x80000000u;
// Below, what a list costs the forward is more than it saves the backward (docs/experiments).
constexpr std::int64_t kListedKeys = 8192;
// Rows of a key head in all views, at most: their pairs are counted, and rows are named, in 31 bits.
constexpr std::int64_t kMostListedRows = std::int64_t{1} << 26;

TDA_HOST_DEVICE inline bool has_narrow_lists(std::int64_t key_length) { return key_length <= kNarrowKeys; }
TDA_HOST_DEVICE inline int list_capacity(std::int64_t key_length) {
  return has_narrow_lists(key_length) ? 2 * kListWords - 1 : kListWords - 1;
}

// Entry 0 is the number of keys.
TDA_HOST_DEVICE inline std::uint32_t list_entry(const std::uint32_t* list, int entry, bool narrow) {
  return narrow ? reinterpret_cast<const std::uint16_t*>(list)[entry] : list[entry];
}

struct SurvivorLists {
  std::uint32_t* totals = nullptr;  // (views, query heads, batch): pairs, or kIncompleteHead and more
  std::uint32_t* rows = nullptr;    // (views, query heads, batch, query_length, kListWords)

  TDA_HOST_DEVICE static std::int64_t head(const AttentionShape& s, int view, std::int64_t query_head,
                                           std::int64_t batch) {
    return (view * s.query_heads + query_head) * s.batch + batch;
  }
};

// Data types and head sizes that the sm90 forward takes.
inline bool is_for_sm90(const AttentionShape& shape, const AttentionOptions& options) {
  const bool half = options.data_type == DataType::kBFloat16 || options.data_type == DataType::kFloat16;
  return half && (shape.head_dim == 64 || shape.head_dim == 128) && shape.value_dim == shape.head_dim;
}

inline bool has_survivor_lists(const AttentionShape& shape, const AttentionOptions& options,
                               const PackedDocuments* documents) {
  const bool countable = shape.key_heads > 0 &&
                         options.views * (shape.query_heads / shape.key_heads) * shape.query_length <= kMostListedRows;
  return is_for_sm90(shape, options) && countable && documents == nullptr && shape.key_length >= kListedKeys;
}

// Words of the lists and of what is in front of them; the lists begin at a multiple of 16 words.
inline std::int64_t total_words(const AttentionShape& shape, int views) {
  return (views * shape.query_heads * shape.batch + kListWords - 1) / kListWords * kListWords;
}
inline std::int64_t survivor_list_words(const AttentionShape& shape, int views) {
  return total_words(shape, views) + views * shape.query_heads * shape.batch * shape.query_length * kListWords;
}

// Of inputs that are normalized and that the sm90 forward takes, packed documents included: the factors 1/|x| of query
// rows and keys, in the order of the tensors' rows, so that the backward need not read Q and K for them. A word says
// whether there are any: kFactorsSaved, or anything else. If so, every key of a sequence with queries has one, and
// every query row of a row tile with a live slice in that view; others may not be written. kNoFactor stands where a
// factor is out of fp32's comfort or the row not finite: the reader computes it.
constexpr std::uint32_t kFactorsSaved = 1;
constexpr float kNoFactor = -1.0f;

struct SavedFactors {
  std::uint32_t* state = nullptr;  // in front of the totals of the lists
  float* query = nullptr;          // (views, query heads, batch, query_length)
  float* key = nullptr;            // (views, key heads, batch, key_length)
};

inline bool has_saved_factors(const AttentionShape& shape, const AttentionOptions& options) {
  return options.normalize && is_for_sm90(shape, options);
}

inline std::int64_t query_factor_words(const AttentionShape& shape, int views) {
  return views * shape.query_heads * shape.batch * shape.query_length;
}
inline std::int64_t key_factor_words(const AttentionShape& shape, int views) {
  return views * shape.key_heads * shape.batch * shape.key_length;
}

inline SurvivorIndexLayout survivor_index_layout(const AttentionShape& shape, const PackedDocuments* documents) {
  SurvivorIndexLayout layout;
  layout.query_heads = shape.query_heads;
  const std::int64_t longest_key = documents ? documents->longest_key : shape.key_length;
  layout.words_per_tile = (longest_key + kKeysPerWord - 1) / kKeysPerWord;
  layout.row_tiles = documents ? shape.query_length / kSliceRows + documents->count
                               : shape.batch * ((shape.query_length + kSliceRows - 1) / kSliceRows);
  return layout;
}

// Where what is behind the words of slices begins, in words. Sections that a call does not have are empty.
struct SurvivorIndexSections {
  std::int64_t state, lists, factors, end;
};

inline SurvivorIndexSections survivor_index_sections(const AttentionShape& shape, const AttentionOptions& options,
                                                     const PackedDocuments* documents) {
  const bool lists = has_survivor_lists(shape, options, documents), factors = has_saved_factors(shape, options);
  std::int64_t words = survivor_index_layout(shape, documents).words(options.views);
  if (lists || factors) words = (words + kListWords - 1) / kListWords * kListWords;
  SurvivorIndexSections sections{};
  sections.state = words;
  sections.lists = sections.state + (factors ? kListWords : 0);
  sections.factors = sections.lists + (lists ? survivor_list_words(shape, options.views) : 0);
  sections.end = sections.factors +
                 (factors ? query_factor_words(shape, options.views) + key_factor_words(shape, options.views) : 0);
  return sections;
}

// The lists of an index, or null pointers.
inline SurvivorLists survivor_lists(void* index, const AttentionShape& shape, const AttentionOptions& options,
                                    const PackedDocuments* documents) {
  if (index == nullptr || !has_survivor_lists(shape, options, documents)) return {};
  SurvivorLists lists;
  lists.totals = static_cast<std::uint32_t*>(index) + survivor_index_sections(shape, options, documents).lists;
  lists.rows = lists.totals + total_words(shape, options.views);
  return lists;
}

// The factors of an index, or null pointers.
inline SavedFactors saved_factors(void* index, const AttentionShape& shape, const AttentionOptions& options,
                                  const PackedDocuments* documents) {
  if (index == nullptr || !has_saved_factors(shape, options)) return {};
  const SurvivorIndexSections sections = survivor_index_sections(shape, options, documents);
  SavedFactors factors;
  factors.state = static_cast<std::uint32_t*>(index) + sections.state;
  factors.query = static_cast<float*>(index) + sections.factors;
  factors.key = factors.query + query_factor_words(shape, options.views);
  return factors;
}

inline std::size_t survivor_index_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                        const PackedDocuments* documents) {
  return static_cast<std::size_t>(survivor_index_sections(shape, options, documents).end) * sizeof(std::uint32_t);
}

}  // namespace tda::cuda
