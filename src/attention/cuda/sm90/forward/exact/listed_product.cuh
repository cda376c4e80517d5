// The listed product: exact scores, weights and the product with V of the candidate keys that the screen listed, for
// strips of 16 query rows that have few.
//
// Plan. Every warp works alone on a strip at a time, claimed heaviest first; many warps hide the latency of gathers.
// Strips of up to eight keys have a path of their own (few_keys.cuh); the others:
//   shared   per warp: a strip's queries and lists of each view (two views: and the union of both lists)
//   step     up to 16 keys that do not cut a slice of 16 aligned keys: K' gathered into B fragments (8 bytes a lane
//            and 16 dims), 2 D/16 products m16n8k16 a view, one fused multiply-add per score, then one product with V
//            for each slice with a survivor (D/8 m16n8k16), the weights of other slices masked
// Bits. The kernels by blocks multiply 16 aligned keys at a time; on Hopper mma and wgmma give the same bits, wherever
// in those 16 an element stands. So dims may be permuted inside 16, keys may stand anywhere in their 16, columns of the
// output may be any, and slices go one by one, in ascending order.
// Cost: about 60 instructions and D/8 products for a key in a slice of its own, half of them in the loop over slices.
#pragma once

#include "attention/cuda/common/kernel_order.cuh"
#include "attention/cuda/sm90/forward/exact/few_keys.cuh"
#include "attention/cuda/sm90/forward/exact/job_order.cuh"
#include "attention/cuda/sm90/forward/exact/strip.cuh"

namespace tda::cuda::sm90 {

// Scales the queries of a strip that have arrived (prepare_queries) and leaves their A fragments, 16 bytes a lane and
// 16 dims. Dims are permuted inside 16, so that a lane's four are neighbours: 4 c .. 4 c + 3.
template <typename Element, int kHeadDim>
__device__ __forceinline__ QueryRows prepare_strip(const ForwardArguments& a, int view, const ListedJob& job,
                                                   char* strip) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  std::uint32_t fragments[kHeadDim / 16][4];
  const std::uint32_t address = shared_address(strip);
  const QueryRows rows = load_queries<Element, kHeadDim>(a, view, job, strip, fragments);
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

// Computes a strip of `count` keys whose queries have arrived in `slot`.
template <typename Element, int kHeadDim, int kViews, bool kSquare>
__device__ __forceinline__ void strip_of_many_keys(const ForwardArguments& a, const ListedJob& job, char* slot,
                                                   const StripKeys<kViews>& keys, int count) {
  using Plan = ListedPlan<kHeadDim, kViews>;
  const int key_head = job.head / a.heads_per_key;
  const int row = job.first_row + (static_cast<int>(threadIdx.x & 31) >> 2);

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

// Computes a strip whose queries and lists have arrived in `slot`.
template <typename Element, int kHeadDim, int kViews, bool kSquare>
__device__ __forceinline__ void listed_strip(const ForwardArguments& a, const ListedJob& job, char* slot, int* both) {
  char* const lists_of_views = slot + kViews * ListedPlan<kHeadDim, kViews>::kStripBytes;
  int count = list_length(job.counts, 0);
  if constexpr (kViews == 2) count = unite(a, job, lists_of_views, both);
  const StripKeys<kViews> keys(a, lists_of_views, both);
  if (count <= kFewKeys) {
    strip_of_few_keys<Element, kHeadDim, kViews, kSquare>(a, job, slot, keys, count);
  } else {
    strip_of_many_keys<Element, kHeadDim, kViews, kSquare>(a, job, slot, keys, count);
  }
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
