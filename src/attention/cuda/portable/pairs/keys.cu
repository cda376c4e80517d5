// Keys of listed heads: dk of all views and dv, sums over the records that rows.cu wrote.
//
// A block of two warps takes 64 keys, a warp 32 of them. The records of as many keys as fit go to shared memory, sorted
// by row within each key, so that sums have one order. Then four keys at a time, eight lanes each, gather the rows that
// their records name. Keys with more than kLongRun pairs are left to long_keys.cu.
#include "attention/cuda/portable/backward_plan.h"
#include "attention/cuda/portable/pairs/elements.cuh"
#include "attention/cuda/portable/pairs/pairs.h"

namespace tda::cuda::portable {
namespace {

constexpr int kWindowRecords = 256;  // of a warp in shared memory
static_assert(kWindowRecords >= kLongRun);

template <int DIM>
struct KeyScratch {
  PairRecord records[kWindowRecords];
  std::uint32_t first_view[32];  // pairs of each key in view 0
  union {
    struct {  // while records are sorted
      std::uint32_t entries[kWindowRecords];
      std::uint8_t owner[kWindowRecords];
    };
    struct {  // while they are used
      StagedRows<DIM> queries[kStages], d_outputs[kStages];
    };
  };
};

// The keys of a warp: `first_key` + lane.
template <class T, int DIM>
class KeySums {
 public:
  __device__ __forceinline__ KeySums(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                                     const Sequence& s, int key_head, int first_key, KeyScratch<DIM>& scratch)
      : p_(p),
        a_(a),
        s_(s),
        scratch_(scratch),
        key_head_(key_head),
        first_key_(first_key),
        group_(static_cast<int>(p.shape.query_heads / p.shape.key_heads)),
        row_bits_(plan.pairs.row_bits),
        any_extreme_row_(plan.pairs.extreme[2 * (key_head * p.shape.batch + s.batch) + 1] != 0),
        d_outputs_(half_output_gradients(p, a.d_output, s, key_head * group_)),
        queries_(half_queries(p, s, 0, key_head * group_)) {}

  // `count` records of this lane's key from place `first` of `records` on; all keys of one call together have at most
  // kWindowRecords. `own`: the key's gradients are to be written.
  __device__ __forceinline__ void run(const PairRecord* records, std::uint32_t first, std::uint32_t count, bool own) {
    sort_records(reinterpret_cast<const uint4*>(records), first, count);
    order_ = sort_by_weight(own ? count + 1 : 0);
    const int live = __popc(__ballot_sync(0xffffffffu, own && count != 0));
    const int batches = (live + kPairsAtOnce - 1) / kPairsAtOnce;
    segments_ = batches * p_.views;
    advance(0);
#pragma unroll
    for (unsigned stage = 0; stage < kStages - 1; ++stage) fetch(stage);
    unsigned stage = 0;
    dv_.clear();
#pragma unroll 1
    for (int segment = 0; segment < segments_; ++segment) add_segment(at(segment), stage);
    write_empty_keys(batches);
    wait_for_copies<0>();
    __syncwarp();  // before the next records
  }

 private:
  // One view of four keys at once, and how far they are; each group of lanes has its own key and run of records.
  struct Segment {
    int segment, steps, step, first, count;
    std::uint32_t weight_and_key;  // the weight is one more than the key's number of pairs; 0: no key
    __device__ __forceinline__ int key() const { return static_cast<int>(weight_and_key % 32); }
    __device__ __forceinline__ bool exists() const { return weight_and_key >= 32; }
    __device__ __forceinline__ bool has_pairs() const { return weight_and_key >= 64; }
  };

  __device__ __forceinline__ int batch_of(int segment) const { return p_.views == 2 ? segment / 2 : segment; }
  __device__ __forceinline__ int view_of(int segment) const { return p_.views == 2 ? segment % 2 : 0; }

  __device__ __forceinline__ Segment at(int segment) const {
    Segment s{segment, 0, 0, 0, 0, 0};
    s.weight_and_key = __shfl_sync(0xffffffffu, order_, batch_of(segment) * kPairsAtOnce + pair_of_lane());
    const auto all = static_cast<int>(max(s.weight_and_key / 32, 1u)) - 1;
    s.first = static_cast<int>(__shfl_sync(0xffffffffu, first_record_, s.key()));
    s.count = all;
    if (p_.views == 2) {
      const auto front = static_cast<int>(scratch_.first_view[s.key()]);
      s.count = view_of(segment) == 0 ? front : all - front;
      s.first += view_of(segment) == 0 ? 0 : front;
    }
    s.steps = static_cast<int>(__reduce_max_sync(0xffffffffu, static_cast<unsigned>(s.count)));
    return s;
  }

  // Copies the records of each key to shared memory, by entry.
  __device__ __forceinline__ void sort_records(const uint4* records, std::uint32_t first, std::uint32_t count) {
    constexpr std::uint32_t kPasses = kWindowRecords / 32;
    const auto lane = static_cast<std::uint32_t>(own_lane());
    const std::uint32_t behind = sum_up_to(count), total = __shfl_sync(0xffffffffu, behind, 31);
    first_record_ = behind - count;
#pragma unroll 1
    for (std::uint32_t i = first_record_; i < behind; ++i) scratch_.owner[i] = static_cast<std::uint8_t>(lane);
    scratch_.first_view[lane] = 0;
    __syncwarp();
    uint4 record[kPasses];  // all under way at once
#pragma unroll
    for (std::uint32_t n = 0; n < kPasses; ++n) {
      const std::uint32_t i = 32 * n + lane;
      record[n] = make_uint4(0, 0, 0, 0);
      if (32 * n >= total) continue;  // all lanes
      // Modulo 2^32: what is behind the owner's first record here is behind its first there.
      const std::uint32_t place =
          i + __shfl_sync(0xffffffffu, first - first_record_, scratch_.owner[min(i, total - 1)]);
      if (i < total) record[n] = records[place];
    }
#pragma unroll
    for (std::uint32_t n = 0; n < kPasses; ++n) {
      if (32 * n + lane < total) scratch_.entries[32 * n + lane] = record[n].x & ~kExtremeRow;
    }
    __syncwarp();
#pragma unroll
    for (std::uint32_t n = 0; n < kPasses; ++n) {
      if (32 * n < total) place_record(record[n], 32 * n + lane, total, behind);
    }
    __syncwarp();
  }

  // Record i of all to its rank among those of its key.
  __device__ __forceinline__ void place_record(const uint4& record, std::uint32_t i, std::uint32_t total,
                                               std::uint32_t behind) {
    const int owner = scratch_.owner[min(i, total - 1)];
    const std::uint32_t first = __shfl_sync(0xffffffffu, first_record_, owner);
    const std::uint32_t end = __shfl_sync(0xffffffffu, behind, owner);
    if (i >= total) return;
    const std::uint32_t own = record.x & ~kExtremeRow;
    std::uint32_t place = first;
#pragma unroll 4
    for (std::uint32_t j = first; j < end; ++j) place += scratch_.entries[j] < own ? 1u : 0u;
    *reinterpret_cast<uint4*>(&scratch_.records[place]) = record;
    if (p_.views == 2 && own >> row_bits_ < static_cast<std::uint32_t>(group_)) {
      atomicAdd(&scratch_.first_view[owner], 1u);
    }
  }

  // The next segment in which a key has a pair; its queries, those of the group's first head.
  __device__ __forceinline__ void advance(int segment) {
    do {
      fetched_ = at(segment);
    } while (fetched_.steps == 0 && ++segment < segments_);
    if (segment >= segments_) fetched_.segment = segments_;
    queries_ = PairRows(half_queries(p_, s_, view_of(segment), key_head_ * group_));
  }

  // Begins to copy the rows of the next step's queries. A pair that did not survive in the end fetches none: zeros.
  __device__ __forceinline__ void fetch(unsigned stage) {
    if (fetched_.segment < segments_) {
      const bool active = fetched_.step < fetched_.count;
      const PairRecord record = scratch_.records[active ? fetched_.first + fetched_.step : 0];
      const bool alive = active && (record.weight != 0.f || record.gradient != 0.f);
      const auto row = static_cast<int>(record.entry & ((1u << row_bits_) - 1u));
      PairRows queries = queries_, d_outputs = d_outputs_;
      if (group_ > 1) {
        const std::int64_t head = head_in_group(record.entry, view_of(fetched_.segment));
        queries.data += head * p_.inputs.q[view_of(fetched_.segment)].head_stride * 2;
        d_outputs.data += head * a_.d_output.head_stride * 2;
      }
      scratch_.queries[stage % kStages].copy(queries, alive ? row : 0, alive);
      scratch_.d_outputs[stage % kStages].copy(d_outputs, alive ? row : 0, alive);
      if (++fetched_.step == fetched_.steps) advance(fetched_.segment + 1);
    }
    commit_copies();
  }

  __device__ __forceinline__ int head_in_group(std::uint32_t entry, int view) const {
    return static_cast<int>((entry & ~kExtremeRow) >> row_bits_) - view * group_;
  }

  // dk of one view of four keys, and with the last view dv.
  __device__ __forceinline__ void add_segment(Segment b, unsigned& stage) {
    const int view = view_of(b.segment), key = first_key_ + b.key();
    const PairRows keys(half_keys(p_, s_, view, key_head_));
    const RawElements<DIM> raw_key = RawElements<DIM>::load(keys, b.has_pairs() ? key : 0, b.has_pairs());
    const float factor = b.has_pairs() ? key_factors(p_, s_, view, key_head_)[key] : 0.f;
    Elements<DIM> dk;
    dk.clear();
#pragma unroll 1
    for (; b.step < b.steps; ++b.step) {
      fetch(stage + kStages - 1);
      wait_for_copies<kStages - 1>();
      add_pairs(b, stage++, dk);
    }
    store_gradients(b, view, raw_key, factor, dk);
  }

  __device__ __forceinline__ void store_gradients(const Segment& b, int view, const RawElements<DIM>& raw_key,
                                                  float factor, Elements<DIM>& dk) {
    const PairTargets target(a_.outputs.dk[view], s_.batch, key_head_), dv(a_.outputs.dv, s_.batch, key_head_);
    const int key = first_key_ + b.key();
    if (target.data != nullptr) {
      Elements<DIM> unit;
      unit.template unpack<T>(raw_key);
      unit.scale(factor);
      undo_norm(p_.normalize, unit, factor, dk);
      if (b.exists()) dk.template store<T>(target.at(key));
    }
    if (view + 1 < p_.views) return;
    if (dv.data != nullptr && b.exists()) dv_.template store<T>(dv.at(key));
    dv_.clear();
  }

  // One pair of each key that has one left.
  __device__ __forceinline__ void add_pairs(const Segment& b, unsigned stage, Elements<DIM>& dk) {
    const bool active = b.step < b.count;
    const PairRecord record = scratch_.records[active ? b.first + b.step : 0];
    Elements<DIM> q, d_output;
    q.template unpack<T>(scratch_.queries[stage % kStages].read());
    d_output.template unpack<T>(scratch_.d_outputs[stage % kStages].read());
    if (any_extreme_row_) {
      const bool extreme = active && (record.entry & kExtremeRow) != 0;
      const int view = view_of(b.segment), row = static_cast<int>(record.entry & ((1u << row_bits_) - 1u));
      const int head = key_head_ * group_ + head_in_group(record.entry, view);
      q.scale(extreme ? query_factors(p_, s_, view, head)[row] : 1.f);
    }
    dk.add_scaled(active ? record.gradient : 0.f, q);
    dv_.add_scaled(active ? record.weight : 0.f, d_output);
  }

  // Keys without a pair behind those batches.
  __device__ __forceinline__ void write_empty_keys(int batches) {
    Elements<DIM> zeros;
    zeros.clear();
#pragma unroll 1
    for (int batch = batches; batch < 32 / kPairsAtOnce; ++batch) {
      const Segment b = at(batch * p_.views);
      if (!b.exists()) continue;
      const int key = first_key_ + b.key();
      for (int view = 0; view < p_.views; ++view) {
        const PairTargets dk(a_.outputs.dk[view], s_.batch, key_head_);
        if (dk.data != nullptr) zeros.template store<T>(dk.at(key));
      }
      const PairTargets dv(a_.outputs.dv, s_.batch, key_head_);
      if (dv.data != nullptr) zeros.template store<T>(dv.at(key));
    }
  }

  const Problem& p_;
  const BackwardArguments& a_;
  const Sequence& s_;
  KeyScratch<DIM>& scratch_;
  const int key_head_, first_key_, group_, row_bits_;
  const bool any_extreme_row_;
  const PairRows d_outputs_;  // of the group's first head
  PairRows queries_;          // the same, in the view that is being fetched

  int segments_ = 0;
  std::uint32_t order_ = 0, first_record_ = 0;  // of this lane's key
  Segment fetched_{};
  Elements<DIM> dv_;
};

// Zeros to the gradients of a warp's keys.
template <class T>
__device__ __forceinline__ void write_key_zeros(const Problem& p, const BackwardArguments& a, const Sequence& s,
                                                int key_head, int first_key) {
  const int dim = static_cast<int>(p.shape.head_dim);
  for (int view = 0; view < p.views; ++view) {
    const Tensor& dk = a.outputs.dk[view];
    write_zeros<T, 32>(dk, row_offset(dk, s.batch, key_head, s.first_key), first_key, s.key_length, dim, true);
  }
  const Tensor& dv = a.outputs.dv;
  write_zeros<T, 32>(dv, row_offset(dv, s.batch, key_head, s.first_key), first_key, s.key_length, dim, true);
}

template <class T, int DIM>
__global__ void __launch_bounds__(kPairThreads, DIM == 64 ? 12 : 8)
    backward_pair_keys_kernel(const __grid_constant__ Problem p, const __grid_constant__ BackwardArguments a,
                              const __grid_constant__ BackwardPlan plan) {
  __shared__ KeyScratch<DIM> scratch_of[kPairWarps];
  const BlockTask task = block_task(blockIdx.x, p.shape.key_heads, p.sequences);
  const int key_head = task.head;
  if (!is_listed(p, plan.pairs, key_head, task.sequence)) return;
  const Sequence s = sequence_at(p, task.sequence);
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const int first_key = static_cast<int>(task.tile) * kSliceRows + warp * kRowsPerWarp, key = first_key + own_lane();
  const std::int64_t head_of_all = key_head * p.shape.batch + s.batch;
  const std::int64_t flat_key = head_of_all * p.shape.key_length + key;
  const std::uint32_t count = key < s.key_length ? plan.pairs.key_count[flat_key] : 0u;
  if (!__any_sync(0xffffffffu, count != 0)) {
    write_key_zeros<T>(p, a, s, key_head, first_key);
    return;
  }
  const PairRecord* const records = plan.pairs.records + head_of_all * plan.pairs.records_per_head;
  const std::uint32_t first = count != 0 ? plan.pairs.key_end[flat_key] - count : 0u;
  KeySums<T, DIM> sums(p, a, plan, s, key_head, first_key, scratch_of[warp]);
  bool left = key < s.key_length && count <= kLongRun;
#pragma unroll 1
  while (__any_sync(0xffffffffu, left)) {
    const std::uint32_t behind = sum_up_to(left ? count : 0u);
    const bool fits = left && behind <= kWindowRecords;
    sums.run(records, first, fits ? count : 0u, fits);
    left = left && !fits;
  }
}

template <class T, int DIM>
cudaError_t launch_instance(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                            cudaStream_t stream) {
  const std::int64_t tiles = (p.shape.key_length + kSliceRows - 1) / kSliceRows;
  const auto blocks = static_cast<unsigned>(tiles * p.shape.key_heads * p.sequences);
  backward_pair_keys_kernel<T, DIM><<<blocks, kPairThreads, 0, stream>>>(p, a, plan);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_backward_pair_keys(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                                      cudaStream_t stream) {
  return launch_pair_instance(p, [&]<class T, int DIM>() { return launch_instance<T, DIM>(p, a, plan, stream); });
}

}  // namespace tda::cuda::portable
