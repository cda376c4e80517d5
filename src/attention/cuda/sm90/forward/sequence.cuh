// Where the rows and keys of a job lie: in a batch element, or in a packed document.
//
// Blocks of 256 rows have slots. A batch element's slot is the block's number; the slots of documents count through all
// of them, with a gap here and there (DocumentSlot), so that the host needs no offset to know how many there may be.
// Kernels for packed documents are instances of their own (kPacked): elsewhere all of this is constant.
#pragma once

#include "attention/cuda/sm90/forward/arguments.h"

namespace tda::cuda::sm90 {

// A batch element.
template <bool kPacked>
struct Sequence {
  const ForwardArguments* a;
  int index;

  Sequence() = default;
  __device__ __forceinline__ Sequence(const ForwardArguments& arguments, int batch) : a(&arguments), index(batch) {}
  __device__ __forceinline__ int batch() const { return index; }  // of the tensors
  // Rows of the tensors where it begins.
  __device__ __forceinline__ int first_query() const { return 0; }
  __device__ __forceinline__ int first_key() const { return 0; }
  __device__ __forceinline__ int query_length() const { return a->query_length; }
  __device__ __forceinline__ int key_length() const { return a->key_length; }
  // Query row i stands at position offset() + i.
  __device__ __forceinline__ int offset() const { return a->position_offset; }
  // In the survivor index, and in a head's key_tile and key_scale.
  __device__ __forceinline__ std::int64_t first_row_tile() const {
    return static_cast<std::int64_t>(index) * a->row_tiles;
  }
  __device__ __forceinline__ int first_key_tile() const { return 0; }
  __device__ __forceinline__ int first_scale() const { return 0; }
};

// A document.
template <>
struct Sequence<true> {
  int index, query, key, queries, keys;

  Sequence() = default;
  __device__ __forceinline__ explicit Sequence(const DocumentSlot& slot)
      : index(slot.document),
        query(slot.first_query),
        key(slot.first_key),
        queries(slot.query_length),
        keys(slot.key_length) {}
  __device__ __forceinline__ int batch() const { return 0; }
  __device__ __forceinline__ int first_query() const { return query; }
  __device__ __forceinline__ int first_key() const { return key; }
  __device__ __forceinline__ int query_length() const { return queries; }
  __device__ __forceinline__ int key_length() const { return keys; }
  __device__ __forceinline__ int offset() const { return keys - queries; }
  __device__ __forceinline__ std::int64_t first_row_tile() const {
    return SurvivorIndexLayout::first_row_tile(true, index, query, queries);
  }
  __device__ __forceinline__ int first_key_tile() const { return key / kScreenKeys + index; }
  // A multiple of 16 bytes, for the copy engine: documents that begin at any key leave gaps for that.
  __device__ __forceinline__ int first_scale() const { return (key / kScaleAlignment + index) * kScaleAlignment; }
};

// Row `block` * 256 of a sequence, for a query head.
template <bool kPacked>
struct RowBlock {
  Sequence<kPacked> sequence;
  int head, block;
};

// `head_of_all` counts batch and query heads.
template <bool kPacked>
__device__ __forceinline__ RowBlock<kPacked> row_block(const ForwardArguments& a, int head_of_all, int slot) {
  if constexpr (kPacked) {
    const DocumentSlot& document = a.row_slots[slot];
    return {Sequence<true>(document), head_of_all, document.part};
  } else {
    return {Sequence<false>(a, head_of_all / a.query_heads), head_of_all % a.query_heads, slot};
  }
}

// Keys part * 256 and further of a sequence.
template <bool kPacked>
struct KeyBlock {
  Sequence<kPacked> sequence;
  int part;
};

template <bool kPacked>
__device__ __forceinline__ KeyBlock<kPacked> key_block(const ForwardArguments& a, int batch, int slot) {
  if constexpr (kPacked) {
    const DocumentSlot& document = a.key_slots[slot];
    return {Sequence<true>(document), document.part};
  } else {
    return {Sequence<false>(a, batch), slot};
  }
}

// Number of (view, batch, key head).
__device__ __forceinline__ int key_head_of_all(const ForwardArguments& a, int view, int batch, int key_head) {
  return (view * a.batch + batch) * a.key_heads + key_head;
}

// Entries of a head in key_scale. Without documents those of keys8, so that addresses have parts in common.
template <bool kPacked>
__device__ __forceinline__ int scale_pitch(const ForwardArguments& a) {
  return kPacked ? a.scale_pitch : a.key_rows;
}

// 1/|k| of the sequence's keys.
template <bool kPacked>
__device__ __forceinline__ const float* key_scales(const ForwardArguments& a, int view, const Sequence<kPacked>& s,
                                                   int key_head) {
  return a.key_scale +
         static_cast<std::int64_t>(key_head_of_all(a, view, s.batch(), key_head)) * scale_pitch<kPacked>(a) +
         s.first_scale();
}

// Where 1/|x| of query row `row`, and of the sequence's first key, goes in a survivor index that has factors.
template <bool kPacked>
__device__ __forceinline__ float* saved_query_factor(const ForwardArguments& a, int view, const Sequence<kPacked>& s,
                                                     int head, int row) {
  const int head_of_all = (view * a.query_heads + head) * a.batch + s.batch();
  return a.factors.query + static_cast<std::int64_t>(head_of_all) * a.query_length + (s.first_query() + row);
}
template <bool kPacked>
__device__ __forceinline__ float* saved_key_factors(const ForwardArguments& a, int view, const Sequence<kPacked>& s,
                                                    int key_head) {
  const int head_of_all = (view * a.key_heads + key_head) * a.batch + s.batch();
  return a.factors.key + static_cast<std::int64_t>(head_of_all) * a.key_length + s.first_key();
}

// Place of query row 0 of a head in arrays of (B, H_q, T_q).
template <bool kPacked>
__device__ __forceinline__ std::int64_t flat_row(const ForwardArguments& a, const Sequence<kPacked>& s, int head) {
  return (static_cast<std::int64_t>(s.batch()) * a.query_heads + head) * a.query_length + s.first_query();
}

}  // namespace tda::cuda::sm90
