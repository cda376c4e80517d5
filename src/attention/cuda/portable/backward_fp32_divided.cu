// Backward of fp32 inputs for the tasks in which the screen finds more than a warp's queue holds.
//
// A block of 256 threads owns a strip of 16 query rows of one view and head (dq and the shares of dbeta and dlambda),
// or of 16 keys of one key head (dk of every view, dv). For each view and head (strip_list.cuh):
//   1. each warp screens units of 16 x 16 pairs from the live slices of the survivor index;
//   2. the candidates of up to 128 units are listed, row by row;
//   3. the list is cut into 16 runs of the same length, one for each 16 lanes. A warp computes s, dP and from them g
//   and
//      w a of 32 pairs, 16 of each of its two runs, and then adds g times the unit rows (and w a times dO), which the
//      first step left in the L1 cache, to what its runs contribute to each row;
//   4. the contributions join the strip's sums in the order of the runs.
// A run that reaches from row r on has its contribution to row r + i in place `run` + r + i: of two runs with the same
// place, one would have to begin before the other ends. So 31 places do for 16 rows and 16 runs.
// Every order follows from the inputs alone, so that gradients repeat to the bit.
// Shared memory: 48 KiB for 64 columns and 80 KiB for 128. What one strip takes: 1,000 cycles for each eight units and
// 4,000 for each 256 candidates (estimates).
#include "attention/cuda/portable/backward_pairs.cuh"
#include "attention/cuda/portable/strip_list.cuh"

namespace tda::cuda::portable {
namespace {

constexpr int kRuns = kRowGroups, kPlaces = kStripRows + kRuns - 1;
constexpr int kRunPairs = 16;  // of a run that are weighed at once

// Rows of this many floats, for the gradient x (dq or dk, with respect to unit vectors) and for dv.
template <int COLUMNS>
struct SharedSums {
  float rows[kStripRows][COLUMNS];
  float places[kPlaces][COLUMNS];
};

struct Strip {
  Sequence sequence;
  Operands operands;
  int first, count;  // first row (or key) in the sequence, and how many exist
  int view, head;    // of queries; of keys their key head
};

template <int DIM, int COLUMNS>
struct SharedStrip {
  Strip strip;
  StripList<1> list;
  __align__(16) float unit[kStripRows * DIM];         // the strip's unit rows (strip_slot)
  __align__(16) float partner[kStripRows * COLUMNS];  // dO of its queries, or v of its keys
  __align__(16) SharedSums<DIM> x;
  SharedSums<COLUMNS> v;
  std::uint32_t staged[kListWarps][2 * kRunPairs];
  float2 factors[kListWarps][2 * kRunPairs];  // g, w a
  double dbeta[kListWarps], dlambda[kListWarps];
  unsigned touched;  // rows whose gradient x is not 0
};

// A part of the listed pairs: `begin` .. `end` - 1.
struct Run {
  int begin, end;
  __device__ Run(int run, int listed) : begin(run * listed / kRuns), end((run + 1) * listed / kRuns) {}
  template <int VIEWS>
  __device__ bool meets(const StripList<VIEWS>& list, int row) const {
    return max(begin, list.row_begin[row]) < min(end, list.row_begin[row + 1]);
  }
};

// What a run adds to the rows of the strip: 16 lanes have four columns of each 64. Products of one chain, of 16 rows of
// the other side, are added in registers before they join the row's contribution.
template <int COLUMNS>
struct RunSums {
  GroupColumns<COLUMNS> partial;

  __device__ RunSums() { partial.clear(); }
  __device__ static __forceinline__ void clear_row(SharedSums<COLUMNS>& sums, int row) {
#pragma unroll
    for (int n = 0; n < GroupColumns<COLUMNS>::kCount; ++n) {
      *reinterpret_cast<float4*>(sums.places[row_group() + row] + GroupColumns<COLUMNS>::column(n)) =
          make_float4(0.f, 0.f, 0.f, 0.f);
    }
  }
  __device__ __forceinline__ void end_chain(SharedSums<COLUMNS>& sums, int row) {
#pragma unroll
    for (int n = 0; n < partial.kCount; ++n) {
      add_to(sums.places[row_group() + row] + partial.column(n), partial.x[n]);
    }
    partial.clear();
  }
  __device__ static __forceinline__ void add_to(float* columns, const float4& x) {
    float4 sum = *reinterpret_cast<const float4*>(columns);
    sum.x += x.x, sum.y += x.y, sum.z += x.z, sum.w += x.w;
    *reinterpret_cast<float4*>(columns) = sum;
  }
  // Adds all runs' contributions to the row that the lanes own.
  __device__ static __forceinline__ void join(SharedSums<COLUMNS>& sums, bool meets, int run) {
    if (!meets) return;
#pragma unroll
    for (int n = 0; n < GroupColumns<COLUMNS>::kCount; ++n) {
      const int column = GroupColumns<COLUMNS>::column(n);
      add_to(sums.rows[row_group()] + column,
             *reinterpret_cast<const float4*>(sums.places[row_group() + run] + column));
    }
  }
};

template <int COLUMNS>
__device__ __forceinline__ void clear_rows(SharedSums<COLUMNS>& sums) {
#pragma unroll 1
  for (int i = static_cast<int>(threadIdx.x); i < kStripRows * COLUMNS; i += kListThreads) (&sums.rows[0][0])[i] = 0.f;
}

// Bits of the candidates among the strip and the rows first_other .. + 15 of the other side, in lanes 0 .. 15.
template <bool KEYS, int DIM>
__device__ __forceinline__ std::uint32_t screen_unit(const Problem& p, const Strip& strip,
                                                     const std::uint32_t (&a)[DIM / 16][4], const float2& of_rows,
                                                     int first_other) {
  const Operands& o = strip.operands;
  const int lane = lane_of_warp();
  float scores[2][4] = {}, of_columns[2][2] = {};
  screen_others<DIM>(scores, a, KEYS ? o.q : o.k, first_other, KEYS ? o.query_length : o.key_length);
  if constexpr (KEYS) {
    const float own = screen_threshold_of_row(p, o, first_other + lane % kUnitRows);
#pragma unroll
    for (int n = 0; n < 4; ++n) {
      of_columns[n / 2][n % 2] = __shfl_sync(kWholeWarp, own, n / 2 * 8 + lane % 4 * 2 + n % 2);
    }
  }
  const std::uint32_t bits = candidate_rows<KEYS>(scores, of_rows, [&](int n, int e) { return of_columns[n][e]; });
  return lane < strip.count ? bits & pairs_seen<KEYS>(o, strip.first + lane, first_other) : 0u;
}

// The places in the list of the pairs that a warp works on at once: pair i of 32 belongs to its run i % 2.
struct WarpPairs {
  Run even, odd;
  __device__ explicit WarpPairs(int listed) : even(2 * warp_of_block(), listed), odd(2 * warp_of_block() + 1, listed) {}
  __device__ int longest() const { return max(even.end - even.begin, odd.end - odd.begin); }
  __device__ int place(int step, int pair) const { return (pair % 2 ? odd.begin : even.begin) + step + pair / 2; }
  __device__ bool exists(int step, int pair) const { return place(step, pair) < (pair % 2 ? odd.end : even.end); }
};

struct ParameterShares {
  double dbeta = 0.0, dlambda = 0.0;  // of the lane
};

// g and w a of the warp's staged pairs, of which the first `count` may exist; `exists`: the lane's own one does.
template <bool KEYS, int DIM, int COLUMNS>
__device__ __forceinline__ void weigh(const Problem& p, SharedStrip<DIM, COLUMNS>& shared, int count, bool exists,
                                      ParameterShares& shares) {
  const Strip& strip = shared.strip;
  const std::uint32_t* const entries = shared.staged[warp_of_block()];
  const UnitRows others = KEYS ? strip.operands.q : strip.operands.k;
  const float s = strip_products<DIM, kPairsAtOnce>(
      shared.unit, entries, count, [&](int row, int d, float4(&x)[2]) { others.load_unit(row, d, x); });
  const UnitRows partners = KEYS ? strip.operands.d_output : strip.operands.v;
  const float d_weight = strip_products<COLUMNS, kPairsAtOnce>(
      shared.partner, entries, count, [&](int row, int d, float4(&x)[2]) { partners.load_raw(row, d, x); });
  float2 factors = make_float2(0.f, 0.f);
  if (exists) {
    const std::uint32_t own = entries[own_pair()];
    const double scale = __ldg(strip.operands.scale + (KEYS ? entry_other(own) : strip.first + entry_row(own)));
    const float r = excess(s, threshold_at(strip.operands.beta, scale));
    if (survives(r)) {
      const float a = weight(r, p.power);
      const float sign = strip.operands.sign;
      factors = make_float2(sign * d_weight * weight_derivative(r, p.power), sign * a);
      if constexpr (!KEYS) {
        shares.dbeta = fma(scale, static_cast<double>(factors.x), shares.dbeta);
        shares.dlambda = fma(static_cast<double>(a), static_cast<double>(d_weight), shares.dlambda);
      }
    }
  }
  shared.factors[warp_of_block()][own_pair()] = factors;
  __syncwarp();
}

// The columns of the other side's unit row; a row with a NaN counts as 0, because its weight carries the NaN.
template <int DIM>
__device__ __forceinline__ void load_unit_columns(GroupColumns<DIM>& columns, const UnitRows& rows, int row) {
  columns.load(rows.data + row * rows.row_stride, rows.dim);
  const float high = __ldg(rows.high + row), low = __ldg(rows.low + row);
#pragma unroll
  for (int n = 0; n < columns.kCount; ++n) {
    columns.x[n] = high != high ? make_float4(0.f, 0.f, 0.f, 0.f) : scaled(columns.x[n], high, low);
  }
}

// Adds the products of the `count` staged pairs of the lanes' run, several rows under way at a time. `chain` is the row
// in the top four bits and the chain. Returns the rows that got some gradient x.
template <bool KEYS, int DIM, int COLUMNS>
__device__ __forceinline__ unsigned accumulate(SharedStrip<DIM, COLUMNS>& shared, int count, std::uint32_t& chain,
                                               RunSums<DIM>& x, RunSums<COLUMNS>& v) {
  constexpr int kAtOnce = 16 / (DIM / 16 + (KEYS ? COLUMNS / 16 : 0));
  const UnitRows others = KEYS ? shared.strip.operands.q : shared.strip.operands.k;
  const UnitRows d_output = shared.strip.operands.d_output;
  const int run = row_group() % 2;
  unsigned touched = 0;
#pragma unroll 1
  for (int base = 0; base < count; base += kAtOnce) {
    GroupColumns<DIM> units[kAtOnce];
    GroupColumns<COLUMNS> rows[KEYS ? kAtOnce : 1];
    float2 factors[kAtOnce];
    std::uint32_t own[kAtOnce];
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {  // pairs that do not exist have no weight
      own[n] = shared.staged[warp_of_block()][2 * (base + n) + run];
      factors[n] = shared.factors[warp_of_block()][2 * (base + n) + run];
      if (factors[n].x != 0.f) load_unit_columns<DIM>(units[n], others, entry_other(own[n]));
      if constexpr (KEYS) {
        if (factors[n].y != 0.f) rows[n].load(d_output.data + entry_other(own[n]) * d_output.row_stride, d_output.dim);
      }
    }
#pragma unroll
    for (int n = 0; n < kAtOnce; ++n) {
      if (factors[n].x == 0.f && factors[n].y == 0.f) continue;
      const auto row = static_cast<std::uint32_t>(entry_row(own[n]));
      const std::uint32_t of_pair = row << 28 | static_cast<std::uint32_t>(entry_other(own[n]) / kUnitRows);
      if (of_pair != chain) {
        x.end_chain(shared.x, static_cast<int>(chain >> 28));
        if constexpr (KEYS) v.end_chain(shared.v, static_cast<int>(chain >> 28));
        chain = of_pair;
      }
      if (factors[n].x != 0.f) {
        x.partial.multiply_add(factors[n].x, units[n]);
        touched |= 1u << row;
      }
      if constexpr (KEYS) {
        if (factors[n].y != 0.f) v.partial.multiply_add(factors[n].y, rows[n]);
      }
    }
  }
  return touched;
}

// Adds the listed pairs to the strip's sums.
template <bool KEYS, int DIM, int COLUMNS>
__device__ __forceinline__ void work_off(const Problem& p, int listed, SharedStrip<DIM, COLUMNS>& shared) {
  const Run run(row_group(), listed);
  RunSums<DIM> x;
  RunSums<COLUMNS> v;
#pragma unroll 1
  for (int row = 0; row < kStripRows; ++row) {
    if (!run.meets(shared.list, row)) continue;
    x.clear_row(shared.x, row);
    if constexpr (KEYS) v.clear_row(shared.v, row);
  }
  const WarpPairs pairs(listed);
  const int lane = lane_of_warp(), longest = pairs.longest();
  // A chain of the run's first row, so that the place that its end adds nothing to exists.
  std::uint32_t chain = run.begin < run.end ? shared.list.entries[run.begin] & 0xf0000000u : 0u;
  unsigned touched = 0;
  ParameterShares shares;
#pragma unroll 1
  for (int step = 0; step < longest; step += kRunPairs) {
    shared.staged[warp_of_block()][lane] = shared.list.entries[min(pairs.place(step, lane), listed - 1)];
    __syncwarp();
    weigh<KEYS>(p, shared, 2 * min(kRunPairs, longest - step), pairs.exists(step, own_pair()), shares);
    touched |= accumulate<KEYS>(shared, min(kRunPairs, run.end - run.begin - step), chain, x, v);
    __syncwarp();
  }
  if (run.begin < run.end) {
    x.end_chain(shared.x, static_cast<int>(chain >> 28));
    if constexpr (KEYS) v.end_chain(shared.v, static_cast<int>(chain >> 28));
  }
  if (touched != 0 && lane_of_row() == 0) atomicOr(&shared.touched, touched);
  if constexpr (!KEYS) {
    const double dbeta = sum_over_warp(shares.dbeta), dlambda = sum_over_warp(shares.dlambda);
    if (lane == 0) {
      shared.dbeta[warp_of_block()] += dbeta;
      shared.dlambda[warp_of_block()] += dlambda;
    }
  }
  __syncthreads();
#pragma unroll 1
  for (int n = 0; n < kRuns; ++n) {
    const bool meets = Run(n, listed).meets(shared.list, row_group());
    RunSums<DIM>::join(shared.x, meets, n);
    if constexpr (KEYS) RunSums<COLUMNS>::join(shared.v, meets, n);
  }
}

// Screens the first `units` units.
template <bool KEYS, int DIM, int COLUMNS>
__device__ __forceinline__ void screen_units(const Problem& p, int units, SharedStrip<DIM, COLUMNS>& shared) {
  const Strip& strip = shared.strip;
  const Operands& o = strip.operands;
  const int row = strip.first + lane_of_warp() / 4;
  std::uint32_t fragments[DIM / 16][4];
  load_strip<DIM>(fragments, KEYS ? o.k : o.q, strip.first, KEYS ? o.key_length : o.query_length);
  float2 of_rows = make_float2(0.f, 0.f);
  if constexpr (!KEYS)
    of_rows = make_float2(screen_threshold_of_row(p, o, row), screen_threshold_of_row(p, o, row + 8));
#pragma unroll 1
  for (int unit = warp_of_block(); unit < units; unit += kListWarps) {
    set_unit(shared.list, 0, unit, screen_unit<KEYS, DIM>(p, strip, fragments, of_rows, shared.list.others[unit]));
  }
}

// Adds the candidates of the first `units` units to the strip's sums. Begins and ends with a barrier.
template <bool KEYS, int DIM, int COLUMNS>
__device__ __forceinline__ void add_units(const Problem& p, int units, SharedStrip<DIM, COLUMNS>& shared) {
  __syncthreads();
  screen_units<KEYS>(p, units, shared);
#pragma unroll 1
  for (int begin = 0, end; begin < units; begin = end) {
    const int listed = list_units(shared.list, begin, units, end);
    if (listed > 0) work_off<KEYS>(p, listed, shared);
  }
  __syncthreads();
}

// Stores the gradients of the strip's rows, with the L2 norm undone.
template <int DIM, int COLUMNS>
__device__ __forceinline__ void store_unit_gradients(const SharedStrip<DIM, COLUMNS>& shared, const UnitRows& rows,
                                                     const Tensor& target, std::int64_t start) {
#pragma unroll 1
  for (int r = warp_of_block(); r < shared.strip.count; r += kListWarps) {
    LaneColumns<DIM> result;
#pragma unroll
    for (int i = 0; i < result.kCount; ++i) result.x[i] = shared.x.rows[r][LaneColumns<DIM>::first() + i];
    const std::int64_t row = shared.strip.first + r;
    if ((shared.touched >> r & 1u) != 0) undo_norm<DIM>(rows, static_cast<int>(row), result);
    result.store(static_cast<float*>(target.data) + start + row * target.row_stride, rows.dim);
  }
}

// Names strip `task` % kStrips of a task of backward_query_fp32.cu, by one thread.
__device__ inline void name_row_strip(const Problem& p, std::int64_t tiles, std::int64_t task, Strip& strip) {
  const BlockTask at = block_task(task / kStrips, p.shape.query_heads * p.views, p.sequences);
  strip.sequence = sequence_at(p, at.sequence);
  strip.view = at.head % p.views;
  strip.head = at.head / p.views;
  strip.first = static_cast<int>((tiles - 1 - at.tile) * kTile + task % kStrips * kStripRows);
  strip.count = max(0, min(kStripRows, strip.sequence.query_length - strip.first));
}

// The same of a task of backward_value_fp32.cu, and of those of backward_key_fp32.cu for the same keys.
__device__ inline void name_column_strip(const Problem& p, std::int64_t task, Strip& strip) {
  const BlockTask at = block_task(task / kStrips, p.shape.key_heads, p.sequences);
  strip.sequence = sequence_at(p, at.sequence);
  strip.head = at.head;
  strip.first = static_cast<int>(at.tile * kTile + task % kStrips * kStripRows);
  strip.count = max(0, min(kStripRows, strip.sequence.key_length - strip.first));
}

// Zeros for a strip that one thread has named. Ends with a barrier.
template <int DIM, int COLUMNS>
__device__ __forceinline__ void start_strip(SharedStrip<DIM, COLUMNS>& shared) {
  if (threadIdx.x == 0) shared.touched = 0;
  if (threadIdx.x < kListWarps) shared.dbeta[threadIdx.x] = shared.dlambda[threadIdx.x] = 0.0;
  clear_rows(shared.x);
  clear_rows(shared.v);
  __syncthreads();
}

// The operands of a view and head, and the strip's rows of them. Begins and ends with a barrier.
template <bool KEYS, int DIM, int COLUMNS>
__device__ __forceinline__ void start_head(const Problem& p, const BackwardArguments& a, int view, int head,
                                           SharedStrip<DIM, COLUMNS>& shared) {
  Strip& strip = shared.strip;
  __syncthreads();
  if (threadIdx.x == 0) strip.operands = make_operands(p, a, strip.sequence, view, head);
  __syncthreads();
  const Operands& o = strip.operands;
  const UnitRows own = KEYS ? o.k : o.q, partners = KEYS ? o.v : o.d_output;
  const int rows = KEYS ? o.key_length : o.query_length;
  load_strip_rows<DIM>(shared.unit, strip.first, rows,
                       [&](int row, int d, float4(&x)[2]) { own.load_unit(row, d, x); });
  load_strip_rows<COLUMNS>(shared.partner, strip.first, rows,
                           [&](int row, int d, float4(&x)[2]) { partners.load_raw(row, d, x); });
  __syncthreads();
}

// Names units for the strip of queries: live slices of 16 keys from key `from` on, as many as there is room for, and
// where to go on. All warps return the same.
__device__ __forceinline__ int name_key_units(const std::uint32_t* words, int last_key, int& from,
                                              int (&others)[kUnits]) {
  static_assert(kUnits >= kSlicesPerWord);
  const int lane = lane_of_warp(), first_word = from / kKeysPerWord, end_word = last_key / kKeysPerWord + 1;
  const std::uint32_t own = first_word + lane < end_word ? words[first_word + lane] : 0u;
  int units = 0;
  for (int n = 0; n < 32 && first_word + n < end_word; ++n) {
    from = (first_word + n) * kKeysPerWord;
    const std::uint32_t live = __shfl_sync(kWholeWarp, own, n) & low_bits((last_key - from) / kSliceKeys + 1);
    if (units + __popc(live) > kUnits) return units;
    const int place = units + __popc(live & low_bits(lane));
    if (warp_of_block() == 0 && (live >> lane & 1u) != 0) others[place] = from + lane * kSliceKeys;
    units += __popc(live);
  }
  from = (first_word + 32) * kKeysPerWord;
  return units;
}

// Names units for the strip of keys: of the 32 row tiles from `tile` on those that live for the strip's slice, 16 rows
// each, without what does not see its first key. All warps return the same.
__device__ __forceinline__ int name_row_units(const SurvivorIndexLayout& index, const std::uint32_t* words,
                                              const Strip& strip, int tile, int (&others)[kUnits]) {
  static_assert(kUnits >= 32 * kStrips);
  const int own = tile + lane_of_warp(), slice = strip.first / kSliceKeys;
  const Operands& o = strip.operands;
  bool live = own * kTile < o.query_length;
  if (live) live = (words[own * index.words_per_tile + slice / kSlicesPerWord] >> slice % kSlicesPerWord & 1u) != 0;
  const auto counts = [&](int row) { return live && row < o.query_length && strip.first < o.offset + row + kUnitRows; };
  int count = 0, units;
#pragma unroll
  for (int n = 0; n < kStrips; ++n) count += counts(own * kTile + n * kUnitRows);
  int place = sum_before(count, units);
#pragma unroll
  for (int n = 0; n < kStrips; ++n) {
    const int row = own * kTile + n * kUnitRows;
    if (counts(row) && warp_of_block() == 0) others[place++] = row;
  }
  return units;
}

// dq of a strip of queries, and its shares of dbeta and dlambda.
template <int DIM, int COLUMNS>
__device__ __forceinline__ void run_row_strip(const Problem& p, const BackwardArguments& a,
                                              SharedStrip<DIM, COLUMNS>& shared) {
  const Strip& strip = shared.strip;
  if (strip.count == 0) return;
  start_head<false>(p, a, strip.view, strip.head, shared);
  const Sequence& s = strip.sequence;
  const std::int64_t flat_tile = s.first_row_tile + strip.first / kTile;
  const int last_key = strip.operands.offset + strip.first + strip.count - 1;
  const std::uint32_t* const words = a.index + p.index.word_offset(strip.view, strip.head, flat_tile);
#pragma unroll 1
  for (int from = 0; from <= last_key;) {
    const int units = name_key_units(words, last_key, from, shared.list.others);
    if (units > 0) add_units<false>(p, units, shared);
  }
  const Tensor& dq = a.outputs.dq[strip.view];
  if (dq.data) {
    store_unit_gradients(shared, strip.operands.q, dq, row_offset(dq, s.batch, strip.head, s.first_query));
  }
  if (threadIdx.x != 0) return;
  const auto sum = [](const double(&parts)[kListWarps]) {
    double total = 0.0;
    for (int w = 0; w < kListWarps; ++w) total += parts[w];
    return total;
  };
  store_shares(p, a, strip.view, strip.head, flat_tile, strip.first % kTile / kStripRows, sum(shared.dbeta),
               sum(shared.dlambda));
}

// Adds the pairs of the view and query head of the operands to a strip of keys.
template <int DIM, int COLUMNS>
__device__ __forceinline__ void add_head(const Problem& p, const BackwardArguments& a, int view, int head,
                                         SharedStrip<DIM, COLUMNS>& shared) {
  const Strip& strip = shared.strip;
  const Operands& o = strip.operands;
  const Sequence& s = strip.sequence;
  const std::uint32_t* const words = a.index + p.index.word_offset(view, head, s.first_row_tile);
#pragma unroll 1
  for (int tile = first_row_tile_of_key(s, strip.first); tile * kTile < o.query_length; tile += 32) {
    const int units = name_row_units(p.index, words, strip, tile, shared.list.others);
    if (units > 0) add_units<true>(p, units, shared);
  }
}

// dk of every view and dv of a strip of keys.
template <int DIM, int COLUMNS>
__device__ __forceinline__ void run_column_strip(const Problem& p, const BackwardArguments& a,
                                                 SharedStrip<DIM, COLUMNS>& shared) {
  const Strip& strip = shared.strip;
  if (strip.count == 0) return;
  const Sequence& s = strip.sequence;
  const int group = static_cast<int>(p.shape.query_heads / p.shape.key_heads);
#pragma unroll 1
  for (int view = 0; view < p.views; ++view) {
#pragma unroll 1
    for (int n = 0; n < group; ++n) {
      start_head<true>(p, a, view, strip.head * group + n, shared);
      add_head(p, a, view, strip.head * group + n, shared);
    }
    const Tensor& dk = a.outputs.dk[view];
    if (dk.data) {
      store_unit_gradients(shared, strip.operands.k, dk, row_offset(dk, s.batch, strip.head, s.first_key));
    }
    __syncthreads();
    clear_rows(shared.x);
    if (threadIdx.x == 0) shared.touched = 0;
  }
  const Tensor& dv = a.outputs.dv;
  if (!dv.data || row_group() >= strip.count) return;
  GroupColumns<COLUMNS> columns;
#pragma unroll
  for (int n = 0; n < columns.kCount; ++n) {
    columns.x[n] = *reinterpret_cast<const float4*>(shared.v.rows[row_group()] + columns.column(n));
  }
  const std::int64_t row = row_offset(dv, s.batch, strip.head, s.first_key + strip.first + row_group());
  columns.store(static_cast<float*>(dv.data) + row, static_cast<int>(p.shape.value_dim));
}

// Keys come first: their strips take longer.
template <int DIM, int COLUMNS>
__global__ void __launch_bounds__(kListThreads, DIM + COLUMNS == 128 ? 2 : 1)
    backward_fp32_divided_kernel(const __grid_constant__ Problem p, const __grid_constant__ BackwardArguments a,
                                 const __grid_constant__ DenseTasks rows, const __grid_constant__ DenseTasks columns,
                                 std::int64_t tiles) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<SharedStrip<DIM, COLUMNS>*>(shared_bytes);
  const std::uint32_t column_places = listed_places(columns);
  run_listed_places(columns.claimed, column_places + listed_places(rows), [&](std::uint32_t place) {
    const bool keys = place < column_places;
    if (threadIdx.x == 0) {
      if (keys) {
        name_column_strip(p, listed_task(columns, place), shared.strip);
      } else {
        name_row_strip(p, tiles, listed_task(rows, place - column_places), shared.strip);
      }
    }
    start_strip(shared);
    if (keys) {
      run_column_strip(p, a, shared);
    } else {
      run_row_strip(p, a, shared);
    }
  });
}

template <int DIM, int COLUMNS>
cudaError_t launch(const Problem& p, const BackwardArguments& a, const DenseTasks& rows, const DenseTasks& columns,
                   cudaStream_t stream) {
  const std::int64_t tiles = (p.longest_query + kTile - 1) / kTile, key_tiles = (p.longest_key + kTile - 1) / kTile;
  const std::int64_t tasks = (tiles * p.shape.query_heads * p.views + key_tiles * p.shape.key_heads) * p.sequences;
  if (tasks == 0) return cudaSuccess;
  constexpr auto kBytes = static_cast<int>(sizeof(SharedStrip<DIM, COLUMNS>));
  static_assert(kBytes <= 99 * 1024, "what every device from sm_80 on has");
  const auto kernel = backward_fp32_divided_kernel<DIM, COLUMNS>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  kernel<<<blocks_for(p, rows, tasks * kStrips), kListThreads, kBytes, stream>>>(p, a, rows, columns, tiles);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_backward_fp32_divided(const Problem& p, const BackwardArguments& a, const ScreenedTasks& tasks,
                                         cudaStream_t stream) {
  const DenseTasks &rows = tasks.divided_rows, &columns = tasks.divided_columns;
  if (p.shape.head_dim > 64) return launch<128, 128>(p, a, rows, columns, stream);
  if (p.shape.value_dim > 64) return launch<64, 128>(p, a, rows, columns, stream);
  return launch<64, 64>(p, a, rows, columns, stream);
}

}  // namespace tda::cuda::portable
