// Rows of listed heads: dq, the shares of dbeta and dlambda of a row tile, and a record of each pair for its key.
//
// A block of two warps takes a row tile with survivors, a warp 32 rows of it. Their lists go to shared memory; then
// four rows at a time, eight lanes each, meet their keys one after the other.
#include "attention/cuda/portable/backward_plan.h"
#include "attention/cuda/portable/pairs/elements.cuh"
#include "attention/cuda/portable/pairs/lists.cuh"
#include "attention/cuda/portable/pairs/pairs.h"
#include "attention/cuda/portable/task_claims.cuh"

namespace tda::cuda::portable {
namespace {

// What a lane, later a warp, gathers for dbeta and dlambda.
struct Shares {
  double dbeta = 0.0, dlambda = 0.0;
};

constexpr std::uint32_t kNoPlace = 0xffffffffu;
constexpr int kListPitch = kListWords + 4;  // words; lanes that write sixteen bytes each meet no bank twice

template <int DIM>
struct RowScratch {
  struct Stage {
    StagedRows<DIM> keys, values;
    float factors[32];
  };
  Stage stages[kStages];
  alignas(16) std::uint32_t lists[32][kListPitch];
  Shares shares[32];
};

// The rows of a warp: `first_row` + lane.
template <class T, int DIM, bool SQUARE, bool NARROW>
class RowPairs {
 public:
  __device__ __forceinline__ RowPairs(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                                      const Sequence& s, int view, int head, int key_head, int first_row,
                                      RowScratch<DIM>& scratch)
      : p_(p),
        a_(a),
        plan_(plan),
        s_(s),
        scratch_(scratch),
        view_(view),
        head_(head),
        key_head_(key_head),
        first_row_(first_row),
        beta_(load_beta(p, head)),
        sign_(view_weight(p, view, head)),
        keys_(PairRows(half_keys(p, s, view, key_head)).pinned()),
        values_(PairRows(half_values(p, s, key_head)).pinned()),
        key_factors_(key_factors(p, s, view, key_head)) {
    asm volatile("" : "+l"(key_factors_));
    const int group = static_cast<int>(p.shape.query_heads / p.shape.key_heads);
    first_entry_ = static_cast<std::uint32_t>(view * group + head % group) << plan.pairs.row_bits;
    any_extreme_key_ = extremes()[0] != 0;
  }

  // All rows of the warp. `lists`: of the head. Records go to `records` at the places that `key_end` gives away; both
  // may be null.
  __device__ __forceinline__ Shares run(const std::uint32_t* lists, std::uint32_t* key_end, PairRecord* records) {
    const int count = stage_lists(lists);
    const int live = __popc(__ballot_sync(0xffffffffu, count != 0));
    if (live == 0) {
      order_ = static_cast<std::uint32_t>(own_lane());
      write_empty_rows();
      return {};
    }
    order_ = sort_by_weight(static_cast<std::uint32_t>(count));
    batches_ = (live + kPairsAtOnce - 1) / kPairsAtOnce;
    scratch_.shares[own_lane()] = {};
    key_end_ = key_end;
    records_ = records;
    leads_ = records != nullptr && lane_of_pair() == 0;
    fetched_ = at(0);
#pragma unroll
    for (unsigned stage = 0; stage < kStages - 1; ++stage) fetch(stage);
    load_next(at(0));
    unsigned stage = 0;
#pragma unroll 1
    for (int batch = 0; batch < batches_; ++batch) add_batch(at(batch), stage);
    write_record();
    write_empty_rows();
    return sum_over_groups();
  }

 private:
  // Four rows at once, and how far they are; each group of lanes has its own row (of the 32) and number of pairs.
  struct Batch {
    int batch, steps, step;
    std::uint32_t weight_and_row;
    __device__ __forceinline__ int row() const { return static_cast<int>(weight_and_row % 32); }
    __device__ __forceinline__ bool has_pairs() const { return weight_and_row >= 32; }
    __device__ __forceinline__ bool active() const { return static_cast<int>(weight_and_row / 32) > step; }
  };

  // What a group of lanes knows of its row.
  struct Row {
    Elements<DIM> unit, d_output, sum;
    float factor, record_factor, tau, g = 0.f, dlambda = 0.f;
    std::uint32_t entry;
  };

  __device__ __forceinline__ Batch at(int batch) const {
    const int first = batch * kPairsAtOnce;
    const std::uint32_t own = __shfl_sync(0xffffffffu, order_, first + pair_of_lane());
    return {batch, static_cast<int>(__shfl_sync(0xffffffffu, order_, first) / 32), 0, own};
  }

  // Copies the lists of the warp's rows and returns the number of keys of this lane's. Most lists end in their first
  // half.
  __device__ __forceinline__ int stage_lists(const std::uint32_t* lists) {
    const int row = first_row_ + own_lane();
    const auto* const list = reinterpret_cast<const uint4*>(lists + static_cast<std::int64_t>(row) * kListWords);
    auto* const staged = reinterpret_cast<uint4*>(scratch_.lists[own_lane()]);
    const bool exists = row < s_.query_length;
    uint4 front[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) front[i] = exists ? list[i] : make_uint4(0, 0, 0, 0);
    const int count = listed_keys(front[0].x, NARROW);
    if (count != 0) {
      staged[0] = front[0];
      staged[1] = front[1];
    }
    if (count >= (NARROW ? kListWords : kListWords / 2)) {
      staged[2] = list[2];
      staged[3] = list[3];
    }
    __syncwarp();
    return count;
  }

  __device__ __forceinline__ std::uint32_t key_of(const Batch& b) const {
    return list_entry(scratch_.lists[b.row()], 1 + b.step, NARROW);
  }

  // Begins to copy the rows of the next step's keys.
  __device__ __forceinline__ void fetch(unsigned stage) {
    if (fetched_.batch < batches_) {
      const bool active = fetched_.active();
      const auto listed = static_cast<int>(key_of(fetched_));
      const int key = active ? listed : 0;
      auto& own = scratch_.stages[stage % kStages];
      own.keys.copy(keys_, key, active);
      own.values.copy(values_, key, active);
      copy_word_async(&own.factors[own_lane()], key_factors_ + key, active);
      if (++fetched_.step == fetched_.steps) fetched_ = at(fetched_.batch + 1);
    }
    commit_copies();
  }

  // Begins to load the rows of a batch.
  __device__ __forceinline__ void load_next(const Batch& b) {
    const bool exists = b.has_pairs();
    const int row = exists ? first_row_ + b.row() : 0;
    next_query_ = RawElements<DIM>::load(PairRows(half_queries(p_, s_, view_, head_)), row, exists);
    next_d_output_ = RawElements<DIM>::load(PairRows(half_output_gradients(p_, a_.d_output, s_, head_)), row, exists);
    next_scale_ = plan_.position_scale[s_.key_length - s_.query_length + row];
  }

  __device__ __forceinline__ void add_batch(Batch b, unsigned& stage) {
    Row row;
    row.unit.template unpack<T>(next_query_);
    row.d_output.template unpack<T>(next_d_output_);
    row.sum.clear();
    row.factor = row_factor(row.unit, p_.normalize, b.has_pairs());
    row.unit.scale(row.factor);
    const bool extreme = is_extreme(row.factor);
    row.record_factor = extreme ? 1.f : row.factor;
    row.entry = first_entry_ + static_cast<std::uint32_t>(first_row_ + b.row()) + (extreme ? kExtremeRow : 0u);
    const float scale = next_scale_;
    row.tau = beta_ * scale;
    if (b.batch + 1 < batches_) load_next(at(b.batch + 1));
#pragma unroll 1
    for (; b.step < b.steps; ++b.step) {
      fetch(stage + kStages - 1);
      wait_for_copies<kStages - 1>();
      add_pairs(b, stage++, row);
    }
    Shares& shares = scratch_.shares[own_lane()];
    shares.dbeta += static_cast<double>(scale) * static_cast<double>(row.g);
    shares.dlambda += static_cast<double>(row.dlambda);
    finish(b, row);
  }

  // One pair of each row that has one left.
  __device__ __forceinline__ void add_pairs(const Batch& b, unsigned stage, Row& row) {
    const bool active = b.active();
    write_record();
    if (active && leads_) place_ = atomicAdd(&key_end_[key_of(b)], 1u);
    const auto& own = scratch_.stages[stage % kStages];
    Elements<DIM> k, v;
    k.template unpack<T>(own.keys.read());
    v.template unpack<T>(own.values.read());
    float key_factor = own.factors[own_lane()];
    if (any_extreme_key_) {
      k.scale(key_factor);
      key_factor = 1.f;
    }
    const float r = dot(row.unit, k) * key_factor - row.tau, d_weight = dot(row.d_output, v);
    const bool live = active && survives(r);
    const float w = live ? weight_of<SQUARE>(r, p_.power) : 0.f;
    const float g = live ? sign_ * d_weight * weight_derivative_of<SQUARE>(r, p_.power) : 0.f;
    row.g += g;
    if (view_ == 1 && live) row.dlambda = fmaf(w, d_weight, row.dlambda);
    row.sum.add_scaled(g * key_factor, k);
    // A pair that does not survive here after all leaves zeros.
    entry_ = row.entry;
    weight_ = sign_ * w;
    gradient_ = g * row.record_factor;
  }

  // The record of the last step; by now its place has arrived.
  __device__ __forceinline__ void write_record() {
    if (place_ != kNoPlace) {
      reinterpret_cast<uint4*>(records_)[place_] =
          make_uint4(entry_, __float_as_uint(weight_), __float_as_uint(gradient_), 0u);
    }
    place_ = kNoPlace;
  }

  __device__ __forceinline__ void finish(const Batch& b, Row& row) {
    const int index = first_row_ + b.row();
    if (b.has_pairs() && is_extreme(row.factor)) {
      query_factors(p_, s_, view_, head_)[index] = row.factor;
      extremes()[1] = 1;
    }
    const PairTargets dq(a_.outputs.dq[view_], s_.batch, head_);
    if (dq.data == nullptr) return;
    undo_norm(p_.normalize, row.unit, row.factor, row.sum);
    if (index < s_.query_length) row.sum.template store<T>(dq.at(index));
  }

  // dq of the rows behind the last batch.
  __device__ __forceinline__ void write_empty_rows() {
    const PairTargets dq(a_.outputs.dq[view_], s_.batch, head_);
    if (dq.data == nullptr) return;
    Elements<DIM> zeros;
    zeros.clear();
#pragma unroll 1
    for (int batch = batches_; batch < 32 / kPairsAtOnce; ++batch) {
      const int row = first_row_ + at(batch).row();
      if (row < s_.query_length) zeros.template store<T>(dq.at(row));
    }
  }

  __device__ __forceinline__ std::uint32_t* extremes() const {
    return plan_.pairs.extreme + 2 * (key_head_ * p_.shape.batch + s_.batch);
  }

  __device__ __forceinline__ Shares sum_over_groups() const {
    Shares sum = scratch_.shares[own_lane()];
#pragma unroll
    for (int step = kLanesPerPair; step < 32; step *= 2) {
      sum.dbeta += __shfl_xor_sync(0xffffffffu, sum.dbeta, step);
      sum.dlambda += __shfl_xor_sync(0xffffffffu, sum.dlambda, step);
    }
    return sum;
  }

  const Problem& p_;
  const BackwardArguments& a_;
  const BackwardPlan& plan_;
  const Sequence& s_;
  RowScratch<DIM>& scratch_;
  const int view_, head_, key_head_, first_row_;
  const float beta_, sign_;
  const PairRows keys_, values_;
  const float* key_factors_;
  std::uint32_t* key_end_ = nullptr;
  PairRecord* records_ = nullptr;
  bool leads_ = false;  // this lane writes the records of its group
  std::uint32_t first_entry_ = 0;
  bool any_extreme_key_ = false;

  int batches_ = 0;
  std::uint32_t order_ = 0;
  Batch fetched_{};
  RawElements<DIM> next_query_, next_d_output_;
  float next_scale_ = 0.f;
  std::uint32_t place_ = kNoPlace, entry_ = 0;  // of the last step's record, where one waits to be written
  float weight_ = 0.f, gradient_ = 0.f;
};

template <class T, int DIM, bool SQUARE, bool NARROW>
__global__ void __launch_bounds__(kPairThreads, DIM == 128 ? 8
                                                : SQUARE   ? 12
                                                           : 11)
    backward_pair_rows_kernel(const __grid_constant__ Problem p, const __grid_constant__ BackwardArguments a,
                              const __grid_constant__ BackwardPlan plan, bool keys_wanted) {
  __shared__ RowScratch<DIM> scratch_of[kPairWarps];
  __shared__ Shares shares_of[kPairWarps];
  const BlockTask task = block_task(blockIdx.x, p.shape.query_heads * p.views, p.sequences);
  const int view = task.head % p.views, head = task.head / p.views;
  const int key_head = static_cast<int>(head / (p.shape.query_heads / p.shape.key_heads));
  if (!is_listed(p, plan.pairs, key_head, task.sequence)) return;
  const Sequence s = sequence_at(p, task.sequence);
  const std::int64_t flat_tile = s.first_row_tile + task.tile;
  if (plan.pairs.live[(view * p.shape.query_heads + head) * p.index.row_tiles + flat_tile] == 0) return;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  const std::int64_t head_of_all = key_head * p.shape.batch + s.batch;
  RowPairs<T, DIM, SQUARE, NARROW> rows(p, a, plan, s, view, head, key_head,
                                        static_cast<int>(task.tile) * kSliceRows + warp * kRowsPerWarp,
                                        scratch_of[warp]);
  Shares shares = rows.run(lists_of_head(p, plan.pairs, view, head, s.batch),
                           keys_wanted ? plan.pairs.key_end + head_of_all * p.shape.key_length : nullptr,
                           keys_wanted ? plan.pairs.records + head_of_all * plan.pairs.records_per_head : nullptr);
  if (own_lane() == 0) shares_of[warp] = shares;
  __syncthreads();
  if (threadIdx.x != 0) return;
  for (int w = 1; w < kPairWarps; ++w) {
    shares.dbeta += shares_of[w].dbeta;
    shares.dlambda += shares_of[w].dlambda;
  }
  if (a.dbeta_parts) {
    a.dbeta_parts[(view * p.shape.query_heads + head) * p.index.row_tiles + flat_tile] = -shares.dbeta;
  }
  if (a.dlambda_parts && view == 1) a.dlambda_parts[head * p.index.row_tiles + flat_tile] = -shares.dlambda;
}

}  // namespace

cudaError_t launch_backward_pair_rows(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                                      bool keys_wanted, cudaStream_t stream) {
  const std::int64_t tiles = (p.shape.query_length + kSliceRows - 1) / kSliceRows;
  const auto blocks = static_cast<unsigned>(tiles * p.shape.query_heads * p.views * p.sequences);
  return launch_fitting_instance(p, [&]<class T, int DIM, bool SQUARE>() {
    const auto kernel = has_narrow_lists(p.shape.key_length) ? backward_pair_rows_kernel<T, DIM, SQUARE, true>
                                                             : backward_pair_rows_kernel<T, DIM, SQUARE, false>;
    kernel<<<blocks, kPairThreads, 0, stream>>>(p, a, plan, keys_wanted);
    return cudaGetLastError();
  });
}

}  // namespace tda::cuda::portable
