// A strip of 16 query rows as one warp computes it by its list of candidate keys: how its queries and lists come to
// shared memory, and how its survivors and output leave.
#pragma once

#include "attention/cuda/common/copy_engine.cuh"
#include "attention/cuda/sm90/forward/exact/key_chunk.cuh"
#include "attention/cuda/sm90/forward/exact/survivor_lists.cuh"
#include "attention/cuda/sm90/forward/screen/candidate_lists.cuh"

namespace tda::cuda::sm90 {

template <int kHeadDim, int kViews>
struct ListedPlan {
  static constexpr int kWarps = 4;
  static constexpr int kThreads = kWarps * 32;
  static constexpr int kBlocksPerProcessor = kViews * kHeadDim == 64 ? 4 : kViews * kHeadDim == 256 ? 2 : 3;
  static constexpr int kStripBytes = kStripRows * kHeadDim * 2;  // of one view
  static constexpr int kSlotBytes = kViews * (kStripBytes + kListBytes);
  static constexpr int kUnionBytes = kViews == 2 ? 4 * kListBytes : 0;
  static constexpr int kWarpBytes = kSlotBytes + kUnionBytes + 128;
  static constexpr int kSharedBytes = kWarps * kWarpBytes;
};

template <typename Element>
__device__ __forceinline__ const Element* head_rows(const ConstTensor& tensor, int batch, int head) {
  return static_cast<const Element*>(tensor.data) + batch * tensor.batch_stride + head * tensor.head_stride;
}

// From row to row; forward_supports() makes sure that it fits.
template <typename Element>
__device__ __forceinline__ int row_bytes(const ConstTensor& tensor) {
  return static_cast<int>(tensor.row_stride * static_cast<std::int64_t>(sizeof(Element)));
}

// Place of 16 bytes of a strip's row in shared memory; 16 rows of 128 bytes, then the next 64 dims.
__device__ __forceinline__ int strip_offset(int row, int chunk) {
  return chunk / 8 * (kStripRows * 128) + static_cast<int>(swizzled_offset<128>(row, chunk % 8));
}

// Asks for the queries of a strip, for a slot of shared memory.
template <typename Element, int kHeadDim>
__device__ __forceinline__ void fetch_queries(const ForwardArguments& a, int view, const ListedJob& job, char* strip) {
  constexpr int kChunks = kHeadDim / 8;  // of a row
  constexpr int kRowsAtOnce = 32 / kChunks;
  const int lane = static_cast<int>(threadIdx.x & 31);
  const ConstTensor& tensor = a.q[view];
  const Element* const head = head_rows<Element>(tensor, job.batch, job.head);
  const Element* from = head + (job.first_row + lane / kChunks) * tensor.row_stride + lane % kChunks * 8;
#pragma unroll
  for (int row = lane / kChunks; row < kStripRows; row += kRowsAtOnce) {
    const bool exists = job.first_row + row < a.query_length;
    copy_async(strip + strip_offset(row, lane % kChunks), exists ? from : head, exists);
    from += kRowsAtOnce * tensor.row_stride;
  }
}

// Fragments (wgmma.cuh) of the queries of a strip that have arrived, scaled.
template <typename Element, int kHeadDim>
__device__ __forceinline__ QueryRows load_queries(const ForwardArguments& a, int view, const ListedJob& job,
                                                  const char* strip, std::uint32_t (&fragments)[kHeadDim / 16][4]) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  const std::uint32_t address = shared_address(strip);
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
    load_matrices(address + strip_offset(lane & 15, 2 * k + (lane >> 4)), fragments[k]);
  }
  return prepare_queries<Element, kHeadDim>(a, Sequence<false>(a, job.batch), view, job.head,
                                            job.first_row + (lane >> 2), fragments);
}

// Marks a slice of a row tile as live; the screen has cleared the words.
__device__ __forceinline__ void mark_slice(const ForwardArguments& a, int view, const ListedJob& job, int slice) {
  if ((threadIdx.x & 31) != 0) return;
  std::uint32_t* const words =
      a.index + a.index_layout.word_offset(
                    view, job.head, static_cast<std::int64_t>(job.batch) * a.row_tiles + job.first_row / kRowTile);
  atomicOr(words + slice / kSlicesPerWord, 1u << slice % kSlicesPerWord);
}

// Scales and stores the strip's output (columns as ChunkValues has them); rows that are not finite are computed again.
template <typename Element, int kHeadDim>
__device__ __forceinline__ void store_strip(const ForwardArguments& a, const ListedJob& job,
                                            const float (&output)[kHeadDim / 8][4], const QueryRows& rows) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  auto* base = static_cast<Element*>(a.output) + job.batch * a.output_batch_stride + job.head * a.output_head_stride;
  unsigned bad[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = job.first_row + (lane >> 2) + 8 * h;
    const bool inside = row < a.query_length;
    const float scale = inverse_power(rows.norm[h], a.power);
    float check = 0.0f;  // 0 x = 0 exactly when x is finite
#pragma unroll
    for (int n = 0; n < kHeadDim / 8; ++n) check += 0.0f * output[n][2 * h] + 0.0f * output[n][2 * h + 1];
    bad[h] = __ballot_sync(kAllLanes, inside && !(check == 0.0f));
    if (!inside) continue;
#pragma unroll
    for (int part = 0; part < kHeadDim / 64; ++part) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        std::uint32_t word[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          word[i] = pack<Element>(output[8 * part + 2 * i][2 * h + e] * scale,
                                  output[8 * part + 2 * i + 1][2 * h + e] * scale);
        }
        *reinterpret_cast<uint4*>(base + row * a.output_row_stride + 64 * part + 16 * (lane & 3) + 8 * e) =
            make_uint4(word[0], word[1], word[2], word[3]);
      }
    }
  }
  repair_rows<Element, kHeadDim>(a, Sequence<false>(a, job.batch), job.head, job.first_row, bad);
}

// Entries of the ascending `keys` that are smaller than `key`, or not greater with kOrEqual.
template <bool kOrEqual>
__device__ __forceinline__ int count_below(const CandidateList& keys, int count, int key) {
  int low = 0;
  int high = count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (kOrEqual ? keys[middle] <= key : keys[middle] < key) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Asks for the lists of a strip, for a slot of shared memory: as they lie in global memory, up to 15 bytes more.
template <int kViews>
__device__ __forceinline__ void fetch_lists(const ForwardArguments& a, const ListedJob& job, char* lists) {
  const int lane = static_cast<int>(threadIdx.x & 31);
#pragma unroll
  for (int view = 0; view < kViews; ++view) {
    const int strip = ((view * a.batch + job.batch) * a.query_heads + job.head) * a.row_blocks * kStripsPerBlock +
                      job.first_row / kStripRows;
    const CandidateList list(a, strip);
    const int bytes = list_length(job.counts, view) * list.key_bytes();
    for (int i = 16 * lane; i < bytes; i += 16 * 32) {
      copy_async(lists + view * kListBytes + i, list.data() + i, true);
    }
  }
}

// Merges the ascending lists of two views in `keys`, in two steps: in order, then without repetitions. Returns the
// number of keys.
__device__ __forceinline__ int unite(const ForwardArguments& a, const ListedJob& job, char* lists, int* keys) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  const CandidateList first(a, lists);
  const CandidateList second(a, lists + kListBytes);
  const int counts[2] = {list_length(job.counts, 0), list_length(job.counts, 1)};
  const int all = counts[0] + counts[1];
  int* const merged = keys + 2 * kStripKeys;
  for (int i = lane; i < counts[0]; i += 32) merged[i + count_below<false>(second, counts[1], first[i])] = first[i];
  for (int i = lane; i < counts[1]; i += 32) merged[i + count_below<true>(first, counts[0], second[i])] = second[i];
  __syncwarp();
  int size = 0;
  for (int start = 0; start < all; start += 32) {
    const int i = start + lane;
    const bool kept = i < all && (i == 0 || merged[i] != merged[i - 1]);
    const std::uint32_t others = __ballot_sync(kAllLanes, kept);
    if (kept) keys[size + __popc(others & ((1u << lane) - 1))] = merged[i];
    size += __popc(others);
  }
  __syncwarp();
  return size;
}

// The ascending keys of a strip: its list, or the union of both.
template <int kViews>
class StripKeys {
 public:
  __device__ __forceinline__ StripKeys(const ForwardArguments& a, char* lists, const int* both)
      : list_(a, lists), both_(both) {}
  __device__ __forceinline__ int operator[](int place) const {
    if constexpr (kViews == 2) return both_[place];
    return list_[place];
  }

 private:
  CandidateList list_;
  const int* both_;
};

// Adds the products of a chunk's weights and value rows, slice by slice, and records its survivors.
template <typename Element, int kViews, int kTiles>
__device__ __forceinline__ void add_slices(const ForwardArguments& a, const ListedJob& job, const KeyChunk& chunk,
                                           const std::uint32_t (&alive)[kViews], const std::uint32_t (&live)[kViews],
                                           const std::uint32_t (&weights)[4], const std::uint32_t (&values)[2][kTiles],
                                           ListWriter (&lists)[kViews], float (&output)[kTiles][4]) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  for (std::uint32_t rest = live[0] | live[kViews - 1]; rest != 0;) {
    const int column = __ffs(static_cast<int>(rest)) - 1;
    const std::uint32_t behind = chunk.heads & (0xfffffffeu << column);  // slices after this one
    const std::uint32_t slice = (behind != 0 ? (behind & -behind) : 0x10000u) - (1u << column);
    rest &= ~slice;
    if (a.index != nullptr) {
      const int place = __shfl_sync(kAllLanes, chunk.key, column) / kSliceKeys;
#pragma unroll
      for (int view = 0; view < kViews; ++view) {
        if ((live[view] & slice) == 0) continue;
        mark_slice(a, view, job, place);
        lists[view].add_listed(a, list_place(a, view, job.batch, job.head, job.first_row + (lane >> 2)), alive[view],
                               slice, chunk.column_key);
      }
    }
    const std::uint32_t own = slice >> (2 * (lane & 3));
    const std::uint32_t first = half_masks(own & 3u);
    const std::uint32_t second = half_masks(own >> 8 & 3u);
    const std::uint32_t masked[4] = {weights[0] & first, weights[1] & first, weights[2] & second, weights[3] & second};
#pragma unroll
    for (int n = 0; n < kTiles; ++n) multiply_add<Element>(output[n], masked, values[0][n], values[1][n]);
  }
}

}  // namespace tda::cuda::sm90
