// The screen: 8-bit scores of every visible pair, one proved yes or no per 16 queries x 64 keys.
//
// Bound. With k' the unit key (or k), A = c q the query row scaled to 127, B = sigma k' and their roundings q8, k8:
//   A B = q8 k8 + q8 (B - k8) + (A - q8) B  <=  q8 k8 + |q8| sigma e_k + |A - q8| sigma n_k
// where e_k, n_k bound the key error and |k'| over 256 keys. A pair above its threshold, s > tau, has A B > c sigma tau
// |q|, so that q8 k8 > sigma (c tau |q| - |A - q8| n_k - |q8| e_k) =: threshold. The integer sums are exact; 1e-4 |q|
// n_k is taken off for the rounding of the exact fp32 scores and of the bound itself. Blocks without such a pair are
// empty.
//
// Plan. Persistent, one block per multiprocessor: 4 consumer warpgroups x 64 query rows (112 registers), a producer
// warp and three dispatcher warps (32). A job is 256 query rows of one head (both views of it); jobs go to blocks
// dynamically, longest first.
//   shared   2 query slots of 256 rows (16-bit, 128-byte swizzle), slots of 256 keys (8-bit), barriers       ~200-225
//   KiB barriers query full/empty per slot, key full/empty per slot; empties count one arrival per consumer warp;
//            finished/dispatched per job, so that atomics and zero fills of a finished job delay no consumer
//   consumer quantises its 16 rows in registers (A operand), per 128 keys: D/32 products m64n128k32, row maxima by
//            three-input maximum, threshold, one bit per 64 keys; 32 bits are OR-ed over the warp and stored
// While one warpgroup reduces, the others keep the tensor cores busy. Cycles a tile of 256 x 256: 4 x D/32 x 128 on the
// tensor cores; about 230 instructions in each of 16 warps, of which 64 are maxima. The second is the limit at D = 64.
//
// A job whose threshold is not positive is not screened, and a warpgroup for which 3/4 of the blocks of the first 1024
// keys are candidates stops screening, unless lists could hold them: such row blocks are dense. A warp whose blocks
// hold candidates also lists their keys (candidate_lists.cuh; about 90 instructions for 64 keys with a candidate).
// Anything a bit or a list says too much costs time, never exactness.
#pragma once

#include "attention/cuda/common/barrier.cuh"
#include "attention/cuda/common/copy_engine.cuh"
#include "attention/cuda/common/kernel_order.cuh"
#include "attention/cuda/common/wgmma.cuh"
#include "attention/cuda/sm90/candidate_lists.cuh"
#include "attention/cuda/sm90/row_formulas.cuh"
#include "attention/cuda/sm90/screening_choice.cuh"

namespace tda::cuda::sm90 {

template <int kHeadDim>
struct ScreenPlan {
  static constexpr int kWarpgroups = 4;
  static constexpr int kThreads = (kWarpgroups + 1) * 128;
  static constexpr int kQuerySlots = 2;
  static constexpr int kKeySlots = kHeadDim == 64 ? 8 : 3;
  static constexpr int kQueryBytes = kScreenRows * kHeadDim * 2;
  static constexpr int kKeyBytes = kScreenKeys * kHeadDim;
  static constexpr int kTailBytes = 1024;
  static constexpr int kSharedBytes = 1024 + kQuerySlots * kQueryBytes + kKeySlots * kKeyBytes + kTailBytes;
};

struct ScreenTail {     // behind the tiles in shared memory
  KeyTile key_tile[8];  // of the key slots
  std::uint64_t query_full[2], query_empty[2];
  std::uint64_t key_full[8], key_empty[8];
  std::uint64_t finished[4], dispatched[4];  // of the last jobs, by turn mod 4
  int job[2];                                // of the query slots; -1 ends the kernel
  int finished_job[4];
  std::uint32_t vote[16];  // per consumer warp: of the first 1024 keys, flags << 16 and listed candidates
  int candidates[4][16];   // candidate strips per consumer warp, or kDenseVote, kUnscreened
  int listed[4][16];       // candidate keys per consumer warp (view 2 in the upper half), or kNotListed
};
static_assert(sizeof(ScreenTail) <= 1024);

constexpr int kDenseVote = -1;         // screening stopped: all flags are set
constexpr int kUnscreened = -2;        // no flags were written
constexpr int kNotListed = -1;         // more candidate keys than a list holds
constexpr int kKeysPerStripBlock = 4;  // up to here a list costs less than blocks
constexpr int kDispatchThreads = 96;
constexpr int kDenseBlocks = 12;  // of a row tile's first 16: from here the dense kernel is quicker

struct ScreenJob {
  int head_of_all;  // batch, query head
  int block;        // of 256 rows
};

// Jobs of a wave of heads interleave, last (longest) row blocks first.
__device__ __forceinline__ ScreenJob screen_job(const ForwardArguments& a, int job) {
  const int heads = a.batch * a.query_heads;
  const int wave_jobs = a.heads_per_wave * a.row_blocks;
  const int wave = job / wave_jobs;
  const int inside = job % wave_jobs;
  const int wave_heads = min(a.heads_per_wave, heads - wave * a.heads_per_wave);
  return {wave * a.heads_per_wave + inside % wave_heads, a.row_blocks - 1 - inside / wave_heads};
}

// Key tiles that rows up to `last_row` see.
__device__ __forceinline__ int visible_key_tiles(const ForwardArguments& a, int last_row) {
  return (a.position_offset + min(last_row, a.query_length - 1)) / kScreenKeys + 1;
}

template <int kHeadDim>
__device__ __forceinline__ bool block_is_dense(const ForwardArguments& a, int head, int block) {
  const int last_position = a.position_offset + min((block + 1) * kScreenRows, a.query_length) - 1;
  return !is_screened_head(a, head) || !(threshold_at<kHeadDim>(a.beta[head], last_position, a.kappa) > 0.0f);
}

// Thresholds of a thread's two rows: flagged when the integer score exceeds sigma * (base + slope_error * e_k +
// slope_norm * n_k).
struct RowBound {
  float base, slope_error, slope_norm;
};

// A square root to 1e-6; the bounds are widened by more.
__device__ __forceinline__ float upper_root(float x) { return x > 0.0f ? x * rsqrtf(x) : 0.0f; }

// Reads the 16 x D query strip of this warp and leaves its 8-bit A fragments and the bounds of rows g and g + 8.
template <typename Element, int kHeadDim>
__device__ __forceinline__ void quantise_queries(const ForwardArguments& a, std::uint32_t strip_address, float tau0,
                                                 float tau1, bool inside0, bool inside1,
                                                 std::uint32_t (&q8)[kHeadDim / 32][4], RowBound (&bound)[2]) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  std::uint32_t raw[kHeadDim / 16][4];
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
    load_matrices(
        strip_address + (k / 4) * (kScreenRows * 128) + swizzled_offset<128>(lane & 15, (k % 4) * 2 + (lane >> 4)),
        raw[k]);
  }
  float square[2] = {0.0f, 0.0f};
  float peak[2] = {0.0f, 0.0f};
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      const float2 x = unpack<Element>(raw[k][r]);
      square[r & 1] += x.x * x.x + x.y * x.y;
      peak[r & 1] = fmaxf(peak[r & 1], fmaxf(fabsf(x.x), fabsf(x.y)));
    }
  }
  float c[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    square[h] = quad_sum(square[h]);
    peak[h] = quad_max(peak[h]);
    c[h] = peak[h] > 1e-30f && peak[h] < 1e30f ? __fdividef(127.0f, peak[h]) : 0.0f;
  }
  float error[2] = {0.0f, 0.0f};
  float size[2] = {0.0f, 0.0f};
#pragma unroll
  for (int k = 0; k < kHeadDim / 16; ++k) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float sum[4];
#pragma unroll
      for (int u = 0; u < 2; ++u) {
        const float2 x = unpack<Element>(raw[k][h + 2 * u]);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float element = i == 0 ? x.x : x.y;
          sum[2 * u + i] = fmaf(element, c[h], kRounder);
          const float rounded = sum[2 * u + i] - kRounder;
          const float difference = fmaf(element, c[h], -rounded);
          error[h] = fmaf(difference, difference, error[h]);
          size[h] = fmaf(rounded, rounded, size[h]);
        }
      }
      q8[k / 2][2 * (k & 1) + h] = pack_bytes(sum[0], sum[1], sum[2], sum[3]);
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float tau = h == 0 ? tau0 : tau1;
    const bool inside = h == 0 ? inside0 : inside1;
    const float norm = square[h] < 1e-24f ? 1e-12f : square[h] * rsqrtf(square[h]);
    bound[h].base = c[h] * (a.normalize ? norm : 1.0f) * tau;
    bound[h].slope_error = -1.0001f * upper_root(quad_sum(size[h]));
    bound[h].slope_norm = -1.0001f * upper_root(quad_sum(error[h])) - 1e-4f * c[h] * norm;
    // A zero row scores 0 everywhere; a row that is not finite must reach the exact kernel; rows behind the end never.
    if (c[h] == 0.0f) bound[h] = {tau > 0.0f && norm < 1.0f ? 1e30f : -1e30f, 0.0f, 0.0f};
    if (!(norm < 1e30f)) bound[h] = {-1e30f, 0.0f, 0.0f};
    if (!inside) bound[h] = {1e30f, 0.0f, 0.0f};
  }
}

// Integer threshold for a key tile (the four floats of KeyTile): scores above it are candidates. Not a number (a bad
// key) counts as "all". Scores stay below 2^21; one is taken off for the rounding.
__device__ __forceinline__ int integer_threshold(const RowBound& bound, const float4& key_tile) {
  const float value = key_tile.y * fmaf(bound.slope_error, key_tile.x, fmaf(bound.slope_norm, key_tile.z, bound.base));
  const float clamped = fminf(fmaxf(value, -4.0e6f), 4.0e6f);
  return __float_as_int(clamped + kRounder) - (kRounderBits + 1);
}

// One bit (the sign) per 64 keys of the tile: does a visible pair of this thread exceed its row's threshold?
// kDiagonal: keys behind `limit0` (row g) and `limit0 + 8` (row g + 8), counted from the tile's first key, are hidden.
template <bool kDiagonal>
__device__ __forceinline__ std::uint32_t reduce_block(std::int32_t (&scores)[64], int block, int threshold0,
                                                      int threshold1, int limit0) {
  constexpr int kHidden = -(1 << 30);
  const int column = block * 64 + static_cast<int>(threadIdx.x & 3) * 2;
  int maximum0 = kHidden;
  int maximum1 = kHidden;
#pragma unroll
  for (int n = 0; n < 8; ++n) {
    const int i = block * 32 + 4 * n;
    if (kDiagonal) {
      const int key = column + 8 * n;
      if (key > limit0) scores[i] = kHidden;
      if (key + 1 > limit0) scores[i + 1] = kHidden;
      if (key > limit0 + 8) scores[i + 2] = kHidden;
      if (key + 1 > limit0 + 8) scores[i + 3] = kHidden;
    }
    maximum0 = __vimax3_s32(maximum0, scores[i], scores[i + 1]);
    maximum1 = __vimax3_s32(maximum1, scores[i + 2], scores[i + 3]);
  }
  return static_cast<std::uint32_t>(threshold0 - maximum0) | static_cast<std::uint32_t>(threshold1 - maximum1);
}

template <int kHeadDim>
__device__ __forceinline__ void screen_producer(const ForwardArguments& a, std::uint32_t queries, std::uint32_t keys,
                                                ScreenTail& tail) {
  using Plan = ScreenPlan<kHeadDim>;
  const int jobs = a.batch * a.query_heads * a.row_blocks;
  int key_slot = 0;
  std::uint32_t key_phase = 1;
  int query_use = 0;
  // With many jobs a block the next claim is under way while this job's tiles are; with few it would cost the balance.
  const bool early = jobs > 16 * static_cast<int>(gridDim.x);
  int next = 0;
  if (early) next = atomicAdd(&a.counters->screen_claims, 1);
  for (;;) {
    const int claimed = early ? next : atomicAdd(&a.counters->screen_claims, 1);
    const bool valid = claimed < jobs;
    if (early && valid) next = atomicAdd(&a.counters->screen_claims, 1);
    const ScreenJob job = valid ? screen_job(a, claimed) : ScreenJob{0, 0};
    const int batch = job.head_of_all / a.query_heads;
    const int head = job.head_of_all % a.query_heads;
    const bool dense = valid && block_is_dense<kHeadDim>(a, head, job.block);
    const int tiles = visible_key_tiles(a, job.block * kScreenRows + kScreenRows - 1);
    for (int view = 0; view < a.views; ++view) {
      const int slot = query_use & 1;
      const std::uint32_t full = shared_address(&tail.query_full[slot]);
      barrier_wait(shared_address(&tail.query_empty[slot]), ((query_use >> 1) & 1) ^ 1);
      ++query_use;
      tail.job[slot] = valid ? claimed : -1;
      if (!valid || dense) {
        barrier_arrive(full);
        break;
      }
      barrier_arrive_expect(full, Plan::kQueryBytes);
#pragma unroll
      for (int half = 0; half < kHeadDim / 64; ++half) {
        for (int part = 0; part < kScreenRows / 64; ++part) {
          copy_tile(queries + slot * Plan::kQueryBytes + half * kScreenRows * 128 + part * 64 * 128, a.query[view],
                    full, half * 64, job.block * kScreenRows + part * 64, head, batch);
        }
      }
      const int key_head = (view * a.batch + batch) * a.key_heads + head / a.heads_per_key;
      for (int tile = 0; tile < tiles; ++tile) {
        barrier_wait(shared_address(&tail.key_empty[key_slot]), key_phase);
        const std::uint32_t key_full = shared_address(&tail.key_full[key_slot]);
        barrier_arrive_expect(key_full, Plan::kKeyBytes + static_cast<int>(sizeof(KeyTile)));
        copy_tile(keys + key_slot * Plan::kKeyBytes, a.key8, key_full, 0, tile * kScreenKeys, key_head, 0);
        copy_bytes(shared_address(&tail.key_tile[key_slot]),
                   a.key_tile + static_cast<std::int64_t>(key_head) * a.key_tiles + tile, sizeof(KeyTile), key_full);
        if (++key_slot == Plan::kKeySlots) {
          key_slot = 0;
          key_phase ^= 1;
        }
      }
    }
    if (!valid) return;
  }
}

// Of a strip, from the lengths of its lists in the halves of a word.
__device__ __forceinline__ int keys_of_views(int counts) { return (counts & 0xffff) + (counts >> 16); }

// Whether a row tile goes by its lists of `keys` candidate keys rather than by its candidate blocks of 64 keys. The
// blocks of strips may coincide, so there are candidates / 4 of them at least.
__device__ __forceinline__ bool is_listed(const ForwardArguments& a, int candidates, int keys) {
  return a.listing && candidates > 0 && keys != kNotListed && keys <= kKeysPerStripBlock * candidates;
}

// Hands out the 256 rows of a finished job: dense together, or sparse row tiles by their number of candidates, or by
// strips with lists. `candidates` and `keys` are those of row tile `lane` of the block, `strip_keys` those of both
// views of strip `lane`.
__device__ __forceinline__ void hand_out(const ForwardArguments& a, const ScreenJob& job, int candidates, int keys,
                                         int strip_keys) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int tile = job.block * kTilesPerBlock + lane;
  const bool exists = lane < kTilesPerBlock && tile < a.row_tiles;
  const bool dense = a.dense_kernel && __all_sync(0xffffffffu, !exists || candidates < 0);
  count_row_tile(a, job.head_of_all % a.query_heads, tile, exists, dense, candidates, candidates != kUnscreened);
  if (dense) {
    if (lane == 0) a.dense_list[atomicAdd(&a.counters->dense_jobs, 1)] = job.head_of_all * a.row_blocks + job.block;
    return;
  }
  const bool listed = exists && is_listed(a, candidates, keys);
  const std::int64_t strips = static_cast<std::int64_t>(a.batch) * a.query_heads * a.row_blocks * kStripsPerBlock;
  if (__shfl_sync(0xffffffffu, listed, lane / 4) && lane < kStripsPerBlock) {
    const int sum = keys_of_views(strip_keys);
    const int bucket = sum == 0 ? 0 : 31 - __clz(sum);
    const int position = atomicAdd(&a.counters->listed_jobs[bucket], 1);
    a.listed_list[bucket * strips + position] =
        ListedJob{job.head_of_all / a.query_heads, job.head_of_all % a.query_heads,
                  job.block * kScreenRows + lane * kStripRows, strip_keys};
  }
  if (!exists || candidates == 0 || listed) return;
  constexpr int kHeaviest = kBuckets - 1;
  const int bucket = candidates == kUnscreened  ? kHeaviest
                     : candidates == kDenseVote ? kHeaviest - 1
                                                : min(31 - __clz(candidates), kHeaviest - 1);
  const int position = atomicAdd(&a.counters->sparse_jobs[bucket], 1);
  a.sparse_list[bucket * (strips / kStripsPerTile) + position] = job.head_of_all * a.row_blocks * kTilesPerBlock + tile;
}

// The words of the survivor index of a row tile: all slices dead.
__device__ __forceinline__ void clear_index(const ForwardArguments& a, int head_of_all, int tile, int thread) {
  if (a.index == nullptr) return;
  const int batch = head_of_all / a.query_heads;
  const int head = head_of_all % a.query_heads;
  const int last = a.position_offset + min((tile + 1) * kRowTile, a.query_length) - 1;
  for (int view = 0; view < a.views; ++view) {
    std::uint32_t* words =
        a.index + a.index_layout.word_offset(view, head, static_cast<std::int64_t>(batch) * a.row_tiles + tile);
    for (int w = thread; w <= last / kKeysPerWord; w += kDispatchThreads) words[w] = 0;
  }
}

// Rows of a row tile without a candidate: output and survivor counts are zero.
template <typename Element, int kHeadDim>
__device__ __forceinline__ void write_empty_rows(const ForwardArguments& a, int head_of_all, int tile, int thread) {
  const int batch = head_of_all / a.query_heads;
  const int head = head_of_all % a.query_heads;
  auto* output = static_cast<Element*>(a.output) + batch * a.output_batch_stride + head * a.output_head_stride;
  constexpr int kChunks = kHeadDim / 8;
  const int rows = min(kRowTile, a.query_length - tile * kRowTile);
#pragma unroll 4
  for (int i = thread; i < rows * kChunks; i += kDispatchThreads) {
    *reinterpret_cast<uint4*>(output + (tile * kRowTile + i / kChunks) * a.output_row_stride + i % kChunks * 8) =
        make_uint4(0, 0, 0, 0);
  }
  if (a.survivors != nullptr && thread < rows) {
    a.survivors[static_cast<std::int64_t>(head_of_all) * a.query_length + tile * kRowTile + thread] = 0;
  }
}

// Three warps beside the producer: they hand out finished jobs and write empty rows, while the consumers go on.
template <typename Element, int kHeadDim>
__device__ __forceinline__ void screen_dispatcher(const ForwardArguments& a, ScreenTail& tail, int thread) {
  const int lane = static_cast<int>(threadIdx.x & 31);
  for (int turn = 0;; ++turn) {
    const int place = turn & 3;
    barrier_wait(shared_address(&tail.finished[place]), (turn >> 2) & 1);
    const int claimed = tail.finished_job[place];
    if (claimed < 0) return;
    int candidates = 0;
    int keys = 0;
    if (lane < kTilesPerBlock) {
      const int* parts = &tail.candidates[place][lane * 4];
      candidates = parts[0] < 0 ? parts[0] : parts[0] + parts[1] + parts[2] + parts[3];
      const int* listed = &tail.listed[place][lane * 4];
      keys = min(min(listed[0], listed[1]), min(listed[2], listed[3])) < 0
                 ? kNotListed
                 : keys_of_views(listed[0]) + keys_of_views(listed[1]) + keys_of_views(listed[2]) +
                       keys_of_views(listed[3]);
    }
    const int strip_keys = tail.listed[place][lane & (kStripsPerBlock - 1)];
    __syncwarp();
    if (lane == 0) barrier_arrive(shared_address(&tail.dispatched[place]));
    const ScreenJob job = screen_job(a, claimed);
    if (thread < 32) hand_out(a, job, candidates, keys, strip_keys);
#pragma unroll 1
    for (int w = 0; w < kTilesPerBlock; ++w) {
      const int tile = job.block * kTilesPerBlock + w;
      if (tile >= a.row_tiles) break;
      const int tile_candidates = __shfl_sync(0xffffffffu, candidates, w);
      if (tile_candidates == 0) write_empty_rows<Element, kHeadDim>(a, job.head_of_all, tile, thread);
      if (tile_candidates == 0 || is_listed(a, tile_candidates, __shfl_sync(0xffffffffu, keys, w))) {
        clear_index(a, job.head_of_all, tile, thread);
      }
    }
  }
}

template <typename Element, int kHeadDim>
__device__ __forceinline__ void screen_consumer(const ForwardArguments& a, std::uint32_t queries, std::uint32_t keys,
                                                ScreenTail& tail) {
  using Plan = ScreenPlan<kHeadDim>;
  const int warp = static_cast<int>(threadIdx.x >> 5);
  const int warpgroup = warp >> 2;
  const int lane = static_cast<int>(threadIdx.x & 31);
  const int row_in_warpgroup = (warp & 3) * 16 + (lane >> 2);
  int key_slot = 0;
  std::uint32_t key_phase = 0;
  int query_use = 0;
  for (int turn = 0;; ++turn) {
    int candidates = 0;
    int listed = 0;
    int claimed = -1;
    int outcome = 0;  // or kDenseVote (of either view), kUnscreened
    for (int view = 0; view < a.views; ++view) {
      const int slot = query_use & 1;
      barrier_wait(shared_address(&tail.query_full[slot]), (query_use >> 1) & 1);
      ++query_use;
      claimed = tail.job[slot];
      if (claimed < 0) break;
      const ScreenJob job = screen_job(a, claimed);
      const int head = job.head_of_all % a.query_heads;
      const int first_row = job.block * kScreenRows + warpgroup * kRowTile;
      const int row = first_row + row_in_warpgroup;
      const bool unscreened = block_is_dense<kHeadDim>(a, head, job.block);

      std::uint32_t q8[kHeadDim / 32][4];
      RowBound bound[2];
      if (!unscreened) {
        const float tau0 = threshold_at<kHeadDim>(a.beta[head], a.position_offset + row, a.kappa);
        const float tau1 = threshold_at<kHeadDim>(a.beta[head], a.position_offset + row + 8, a.kappa);
        const std::uint32_t query_strip = queries + slot * Plan::kQueryBytes + (warpgroup * 64 + (warp & 3) * 16) * 128;
        quantise_queries<Element, kHeadDim>(a, query_strip, tau0, tau1, row < a.query_length, row + 8 < a.query_length,
                                            q8, bound);
      }
      __syncwarp();
      if (lane == 0) barrier_arrive(shared_address(&tail.query_empty[slot]));
      if (unscreened) {
        outcome = kUnscreened;
        break;
      }

      const int job_tiles = visible_key_tiles(a, job.block * kScreenRows + kScreenRows - 1);
      const int tiles = first_row < a.query_length ? visible_key_tiles(a, first_row + kRowTile - 1) : 0;
      const int strip =
          ((view * a.batch * a.query_heads + job.head_of_all) * a.row_blocks + job.block) * kStripsPerBlock + warp;
      const auto words = [&] { return a.flags + static_cast<std::int64_t>(strip) * a.flag_words; };
      int count = a.listing ? 0 : kStripKeys + 1;
      const int limit = a.position_offset + row;  // last key that row g sees
      const int first_position = a.position_offset + first_row;
      std::uint32_t history = 0;
      std::int32_t scores[64];
      int tile = 0;
      for (; tile < tiles; ++tile) {
        barrier_wait(shared_address(&tail.key_full[key_slot]), key_phase);
        const std::uint64_t descriptor = k_major_descriptor<kHeadDim>(keys + key_slot * Plan::kKeyBytes);
        const float4 current = load_shared_float4(shared_address(&tail.key_tile[key_slot]));
        const int threshold0 = integer_threshold(bound[0], current);
        const int threshold1 = integer_threshold(bound[1], current);
        const bool diagonal = tile * kScreenKeys + kScreenKeys - 1 > first_position;
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          std::uint32_t bit[2] = {0, 0};
          const int first_key = tile * kScreenKeys + half * 128;
          if (half == 0 || first_key <= first_position + kRowTile - 1) {
            hold(scores);
            wgmma_fence();
            const std::uint64_t keys_of_half = descriptor + half * (128 * kHeadDim / 16);
            wgmma_int8<false>(scores, q8[0], keys_of_half);
#pragma unroll
            for (int k = 1; k < kHeadDim / 32; ++k) wgmma_int8<true>(scores, q8[k], keys_of_half + 2 * k);
            wgmma_commit();
            wgmma_wait<0>();
            hold(scores);
            if (!diagonal) {
              bit[0] = reduce_block<false>(scores, 0, threshold0, threshold1, 0);
              bit[1] = reduce_block<false>(scores, 1, threshold0, threshold1, 0);
            } else {
#pragma unroll
              for (int block = 0; block < 2; ++block) {
                if (first_key + block * 64 + 63 <= first_position) {
                  bit[block] = reduce_block<false>(scores, block, threshold0, threshold1, 0);
                } else if (first_key + block * 64 <= first_position + kRowTile - 1) {
                  bit[block] = reduce_block<true>(scores, block, threshold0, threshold1, limit - first_key);
                }
              }
            }
          }
          if (half == 1 && lane == 0) barrier_arrive(shared_address(&tail.key_empty[key_slot]));
          if (__any_sync(0xffffffffu, static_cast<std::int32_t>(bit[0] | bit[1]) < 0) && count <= kStripKeys) {
            const CandidateList list(a, strip);
#pragma unroll
            for (int block = 0; block < 2; ++block) {
              if (!__any_sync(0xffffffffu, static_cast<std::int32_t>(bit[block]) < 0)) continue;
              const uint2 found = candidate_keys(scores, block, threshold0, threshold1);
              count = list.append(count, first_key + block * 64, found.x);
              count = list.append(count, first_key + block * 64 + 32, found.y);
            }
          }
          history = (bit[1] & 0x80000000u) | ((bit[0] >> 1) & 0x40000000u) | (history >> 2);
        }
        if (++key_slot == Plan::kKeySlots) {
          key_slot = 0;
          key_phase ^= 1;
        }
        const int phase = tile & 7;
        if (phase == 7 || tile == tiles - 1) {
          const std::uint32_t word = __reduce_or_sync(0xffffffffu, history) >> (28 - 4 * phase);
          if (lane == 0) words()[tile >> 3] = word;
          candidates += __popc(word);
          history = 0;
        } else if (tile == 3 && tiles > 6) {
          const std::uint32_t vote = __reduce_or_sync(0xffffffffu, history) | static_cast<std::uint32_t>(count);
          if (lane == 0) tail.vote[warp] = vote;
          named_barrier_sync(1 + warpgroup, 128);
          const std::uint32_t* votes = &tail.vote[warpgroup * 4];
          const std::uint32_t blocks = (votes[0] | votes[1] | votes[2] | votes[3]) >> 16;
          const int keys = static_cast<int>((votes[0] & 0xffffu) + (votes[1] & 0xffffu) + (votes[2] & 0xffffu) +
                                            (votes[3] & 0xffffu));
          const bool crowded = keys * (tiles / 4) > kStripsPerTile * kStripKeys;  // at this rate
          if (crowded && __popc(blocks) >= kDenseBlocks) {
            outcome = kDenseVote;  // should the rest of the row block be sparse: all blocks are candidates
            for (int w = lane; w <= (tiles - 1) >> 3; w += 32) words()[w] = 0xffffffffu;
            ++tile;
            break;
          }
        }
      }
      listed = listed < 0 || count > kStripKeys ? kNotListed : listed | count << (16 * view);
      for (; tile < job_tiles; ++tile) {  // tiles of later rows, or of a job found dense
        barrier_wait(shared_address(&tail.key_full[key_slot]), key_phase);
        if (lane == 0) barrier_arrive(shared_address(&tail.key_empty[key_slot]));
        if (++key_slot == Plan::kKeySlots) {
          key_slot = 0;
          key_phase ^= 1;
        }
      }
    }

    const int place = turn & 3;
    barrier_wait(shared_address(&tail.dispatched[place]), ((turn >> 2) & 1) ^ 1);
    if (lane == 0) {
      tail.candidates[place][warp] = outcome < 0 ? outcome : candidates;
      tail.listed[place][warp] = listed;
      if (warp == 0) tail.finished_job[place] = claimed;
      barrier_arrive(shared_address(&tail.finished[place]));
    }
    if (claimed < 0) return;
  }
}

template <typename Element, int kHeadDim>
__global__ void __launch_bounds__(ScreenPlan<kHeadDim>::kThreads, 1)
    screen(const __grid_constant__ ForwardArguments a) {
  using Plan = ScreenPlan<kHeadDim>;
  extern __shared__ std::uint8_t shared[];
  const std::uint32_t queries = aligned_shared_address(shared);
  const std::uint32_t keys = queries + Plan::kQuerySlots * Plan::kQueryBytes;
  auto& tail =
      *reinterpret_cast<ScreenTail*>(shared + (keys - shared_address(shared)) + Plan::kKeySlots * Plan::kKeyBytes);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Plan::kQuerySlots; ++i) {
      barrier_init(shared_address(&tail.query_full[i]), 1);
      barrier_init(shared_address(&tail.query_empty[i]), Plan::kWarpgroups * 4);
    }
    for (int i = 0; i < Plan::kKeySlots; ++i) {
      barrier_init(shared_address(&tail.key_full[i]), 1);
      barrier_init(shared_address(&tail.key_empty[i]), Plan::kWarpgroups * 4);
    }
    for (int i = 0; i < 4; ++i) {
      barrier_init(shared_address(&tail.finished[i]), Plan::kWarpgroups * 4);
      barrier_init(shared_address(&tail.dispatched[i]), kDispatchThreads / 32);
    }
    barrier_init_fence();
  }
  __syncthreads();
  begin_kernel(KernelOrder::kAfterPrevious);
  if (threadIdx.x >= Plan::kWarpgroups * 128) {
    shrink_registers<32>();
    const int thread = static_cast<int>(threadIdx.x) - Plan::kWarpgroups * 128;
    if (thread == 0) {
      screen_producer<kHeadDim>(a, queries, keys, tail);
    } else if (thread >= 32) {
      screen_dispatcher<Element, kHeadDim>(a, tail, thread - 32);
    }
  } else {
    grow_registers<112>();
    screen_consumer<Element, kHeadDim>(a, queries, keys, tail);
  }
}

}  // namespace tda::cuda::sm90
