// The listed product: exact scores, weights and the product with V of the candidate keys that the screen listed, for
// strips of 16 query rows that have few.
//
// Plan. Every warp works alone on a strip at a time, claimed heaviest first; many warps hide the latency of gathers.
//   shared   per warp: a strip's queries and lists of each view (two views: and the union of both lists)
//   step     up to 16 keys that do not cut a slice of 16 aligned keys: K' gathered into B fragments (8 bytes a lane
//            and 16 dims), 2 D/16 products m16n8k16 a view, one fused multiply-add per score, then one product with V
//            for each slice with a survivor (D/8 m16n8k16), the weights of other slices masked
// Bits. The kernels by blocks multiply 16 aligned keys at a time; on Hopper mma and wgmma give the same bits, wherever
// in those 16 an element stands. So dims may be permuted inside 16, keys may stand anywhere in their 16, columns of the
// output may be any, and slices go one by one, in ascending order.
// Cost: about 60 instructions and D/8 products for a key in a slice of its own, half of them in the loop over slices.
#pragma once

#include "attention/cuda/common/copy_engine.cuh"
#include "attention/cuda/common/kernel_order.cuh"
#include "attention/cuda/sm90/forward/exact/job_order.cuh"
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
  const int lane = static_cast<int>(threadIdx.x & 31);
  const ConstTensor& tensor = a.q[view];
  const Element* q = head_rows<Element>(tensor, job.batch, job.head);
#pragma unroll
  for (int i = lane; i < kStripRows * kChunks; i += 32) {
    const int row = job.first_row + i / kChunks;
    const bool exists = row < a.query_length;
    copy_async(strip + strip_offset(i / kChunks, i % kChunks),
               q + (exists ? row : 0) * tensor.row_stride + i % kChunks * 8, exists);
  }
}

// Scales the queries of a strip that have arrived (prepare_queries) and leaves their A fragments, 16 bytes a lane and
// 16 dims. Dims are permuted inside 16, so that a lane's four are neighbours: 4 c .. 4 c + 3.
template <typename Element, int kHeadDim>
__device__ __forceinline__ QueryRows prepare_strip(const ForwardArguments& a, int view, const ListedJob& job,
                                                   char* strip) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  std::uint32_t fragments[kHeadDim / 16][4];
  const std::uint32_t address = shared_address(strip);
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
    load_matrices(address + strip_offset(lane & 15, 2 * k + (lane >> 4)), fragments[k]);
  }
  const QueryRows rows = prepare_queries<Element, kHeadDim>(a, Sequence<false>(a, job.batch), view, job.head,
                                                            job.first_row + (lane >> 2), fragments);
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
    store_matrices(address + strip_offset(lane & 15, 2 * k + (lane >> 4)), fragments[k]);
  }
  __syncwarp();
  const int g = lane >> 2;
  const int c = lane & 3;
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
    const char* const four = strip + (c & 1) * 8;
    const uint2 upper = *reinterpret_cast<const uint2*>(four + strip_offset(g, 2 * k + (c >> 1)));
    const uint2 lower = *reinterpret_cast<const uint2*>(four + strip_offset(g + 8, 2 * k + (c >> 1)));
    fragments[k][0] = upper.x;
    fragments[k][1] = lower.x;
    fragments[k][2] = upper.y;
    fragments[k][3] = lower.y;
  }
  __syncwarp();
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
    reinterpret_cast<uint4*>(strip)[32 * k + lane] =
        make_uint4(fragments[k][0], fragments[k][1], fragments[k][2], fragments[k][3]);
  }
  return rows;  // a lane reads what it wrote itself
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

// Computes a strip whose queries and lists have arrived in `slot`.
template <typename Element, int kHeadDim, int kViews, bool kSquare>
__device__ __forceinline__ void listed_strip(const ForwardArguments& a, const ListedJob& job, char* slot, int* both) {
  using Plan = ListedPlan<kHeadDim, kViews>;
  const int key_head = job.head / a.heads_per_key;
  const int row = job.first_row + (static_cast<int>(threadIdx.x & 31) >> 2);

  char* const lists_of_views = slot + kViews * Plan::kStripBytes;
  int count = list_length(job.counts, 0);
  if constexpr (kViews == 2) count = unite(a, job, lists_of_views, both);
  const StripKeys<kViews> keys(a, lists_of_views, both);
  QueryRows rows[kViews];
  ListWriter lists[kViews];
#pragma unroll
  for (int view = 0; view < kViews; ++view) {
    rows[view] = prepare_strip<Element, kHeadDim>(a, view, job, slot + view * Plan::kStripBytes);
    lists[view].begin(a);
  }
  float ratio[2] = {0.0f, 0.0f};
  if constexpr (kViews == 2) view_ratio(a, job.head, rows, ratio);

  int survivors[2] = {0, 0};
  float output[kHeadDim / 8][4] = {};
  for (int done = 0; done < count;) {
    const KeyChunk chunk = take_chunk(keys, done, count - done);
    done += chunk.size;
    ChunkKeys<kHeadDim> chunk_keys[kViews];
#pragma unroll
    for (int view = 0; view < kViews; ++view) {
      const int head_of_all = (view * a.batch + job.batch) * a.key_heads + key_head;
      chunk_keys[view].load(reinterpret_cast<const char*>(head_rows<Element>(a.k[view], job.batch, key_head)),
                            row_bytes<Element>(a.k[view]),
                            a.key_scale + static_cast<std::int64_t>(head_of_all) * a.key_tiles * kScreenKeys, chunk);
    }
    ChunkValues<kHeadDim> chunk_values;
    chunk_values.load(reinterpret_cast<const char*>(head_rows<Element>(a.v, job.batch, key_head)),
                      row_bytes<Element>(a.v), chunk);
    float t[kViews][8];
    std::uint32_t alive[kViews];
    std::uint32_t live[kViews];
#pragma unroll
    for (int view = 0; view < kViews; ++view) {
      score_chunk<Element, kHeadDim>(chunk_keys[view], slot + view * Plan::kStripBytes, rows[view], chunk,
                                     a.position_offset + row, t[view]);
      alive[view] = survivors_of(t[view]);
      live[view] = live_columns(alive[view]);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) survivors[i >> 1 & 1] += t[0][i] > 0.0f || t[kViews - 1][i] > 0.0f;
    std::uint32_t weights[1][4];
    if constexpr (kViews == 1) {
      weigh<Element, kSquare>(t[0], a.power, weights);
    } else {
      weigh_difference<Element, kSquare>(t[0], t[1], a.power, ratio, weights);
    }
    std::uint32_t b[2][kHeadDim / 8];
    chunk_values.fragments(b);
    hold(b[0]);  // or else they are put together anew for every slice
    hold(b[1]);
    add_slices<Element>(a, job, chunk, alive, live, weights[0], b, lists, output);
  }

  store_strip<Element, kHeadDim>(a, job, output, rows[0]);
  if (a.survivors != nullptr) store_survivors(a, Sequence<false>(a, job.batch), job.head, row, survivors);
#pragma unroll
  for (int view = 0; view < kViews; ++view) lists[view].finish(a, list_place(a, view, job.batch, job.head, row));
}

template <typename Element, int kHeadDim, int kViews, bool kSquare>
__global__ void __launch_bounds__(ListedPlan<kHeadDim, kViews>::kThreads,
                                  ListedPlan<kHeadDim, kViews>::kBlocksPerProcessor)
    listed(const __grid_constant__ ForwardArguments a) {
  using Plan = ListedPlan<kHeadDim, kViews>;
  extern __shared__ __align__(128) std::uint8_t shared[];
  begin_kernel(KernelOrder::kBesidePrevious);
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int warp = static_cast<int>(threadIdx.x >> 5);
  char* const own = reinterpret_cast<char*>(shared) + warp * Plan::kWarpBytes;
  const std::int64_t strips = static_cast<std::int64_t>(a.batch) * a.query_heads * a.row_blocks * kStripsPerBlock;
  const JobOrder order = job_order(a.counters->listed_jobs);
  const int jobs = number_of_jobs(order);
  // While a strip is computed, the name of the next one is on its way, and a claim for the one after it.
  auto* const names = reinterpret_cast<ListedJob*>(own + Plan::kSlotBytes + Plan::kUnionBytes);
  const auto fetch_name = [&](int claimed, int turn) {
    const bool exists = claimed < jobs;
    if (exists) {
      const JobPlace at = job_place(order, claimed);
      if (lane == 0) copy_async(names + turn, a.listed_list + (kListBuckets - 1 - at.bucket) * strips + at.place, true);
    }
    commit_copies();
    return exists;
  };
  const int warps = static_cast<int>(gridDim.x) * Plan::kWarps;
  int claimed = static_cast<int>(blockIdx.x) * Plan::kWarps + warp;
  bool exists = fetch_name(claimed, 0);
  claimed += warps;
  for (int turn = 0; exists; turn ^= 1) {
    wait_for_copies<0>();
    __syncwarp();  // also: the strip before is done with shared memory
    const ListedJob job = names[turn];
#pragma unroll
    for (int view = 0; view < kViews; ++view) {
      fetch_queries<Element, kHeadDim>(a, view, job, own + view * Plan::kStripBytes);
    }
    fetch_lists<kViews>(a, job, own + kViews * Plan::kStripBytes);
    commit_copies();
    exists = fetch_name(__shfl_sync(kAllLanes, claimed, 0), turn ^ 1);
    if (lane == 0) claimed = 2 * warps + atomicAdd(&a.counters->listed_claims, 1);
    wait_for_copies<1>();
    __syncwarp();
    listed_strip<Element, kHeadDim, kViews, kSquare>(a, job, own, reinterpret_cast<int*>(own + Plan::kSlotBytes));
  }
  end_kernel(KernelOrder::kBesidePrevious);
}

}  // namespace tda::cuda::sm90
