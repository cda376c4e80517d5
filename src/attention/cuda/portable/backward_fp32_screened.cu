// Backward of fp32 inputs with few survivors: dq, dk, dv and the shares of dbeta and dlambda pair by pair.
//
// Blocks of four warps; a warp owns a strip of 16 rows and shares nothing with the others until the end.
//   Row tasks (dq, dbeta, dlambda): 64 query rows of one view and head; each warp walks the live slices of its row
//   tile. Column tasks (dk of every view, dv): 64 keys of one key head; each warp walks the row tiles in which its 16
//   keys have a survivor, for each view and query head of the group.
// In either: a screen of 16 x 16 pairs (unit rows rounded to fp16 on the way from global memory into the fragments of
// mma.sync) puts candidates into the warp's queue; a full queue is worked off: s and dP of four pairs at a time in
// fp32, then g times the unit rows (and w a times dO) into the strip's sums in shared memory. Every sum has one owner
// and a fixed order. A task in which more than an eighth of the pairs are candidates goes to the dense kernels through
// a list. Shared memory: 46 KiB for 64 columns, 78 KiB for 128. Cost: 150 instructions of a warp for each 16 x 16 pairs
// screened, about 60 a candidate.
#include "attention/cuda/portable/live_slices.cuh"
#include "attention/cuda/portable/screen_product.cuh"

namespace tda::cuda::portable {
namespace {

constexpr int kWarps = 4, kThreads = kWarps * 32;
constexpr int kTile = kWarps * kStripRows;
static_assert(kTile == kSliceRows && kStripRows == kSliceKeys);
constexpr int kQueue = 256;
constexpr int kPairsAtOnce = 4;  // under way

template <int DIM, int COLUMNS>
struct WarpPlan {
  float x[kStripRows][DIM];      // dq or dk, with respect to unit vectors
  float v[kStripRows][COLUMNS];  // dv
  std::uint32_t entries[kQueue];
  float2 factors[kQueue];        // g, w a
  float thresholds[kSliceRows];  // of a row tile, as the screen wants them
};

template <int DIM, int COLUMNS>
struct Plan {
  WarpPlan<DIM, COLUMNS> warp[kWarps];
  double dbeta[kWarps], dlambda[kWarps];
};

// What the pairs of one view and query head are computed from.
struct Operands {
  UnitRows q, k, v, d_output;
  const double* scale;  // c_i of query row 0
  float beta, sign;
  int offset, query_length, key_length;
};

__device__ Operands make_operands(const Problem& p, const BackwardArguments& a, const Sequence& s, int view, int head) {
  const int key_head = static_cast<int>(head / (p.shape.query_heads / p.shape.key_heads));
  const int offset = s.key_length - s.query_length;
  const UnitRows d_output{
      static_cast<const float*>(a.d_output.data) + row_offset(a.d_output, s.batch, head, s.first_query),
      a.d_output.row_stride, nullptr, nullptr, static_cast<int>(p.shape.value_dim)};
  return {unit_query_rows(p, s, view, head),
          unit_key_rows(p, s, view, key_head),
          value_rows(p, s, key_head),
          d_output,
          p.position_scale + offset,
          load_beta(p, head),
          view_weight(p, view, head),
          offset,
          s.query_length,
          s.key_length};
}

// A lane's share of the fp16 unit row `row`, of each 16 elements four neighbours: a product may take its depth in any
// order. Zeros where there is no row.
template <int DIM>
__device__ __forceinline__ void load_half_row(uint2 (&pairs)[DIM / 16], const UnitRows& rows, int row, bool exists) {
  const int d = lane_of_warp() % 4 * 4;
  const float* const from = rows.data + row * rows.row_stride + d;
  const float high = exists ? rows.high[row] : 0.f, low = exists ? rows.low[row] : 0.f;
  float4 x[DIM / 16];
#pragma unroll
  for (int step = 0; step < DIM / 16; ++step) {
    x[step] = exists && 16 * step + d < rows.dim ? *reinterpret_cast<const float4*>(from + 16 * step)
                                                 : make_float4(0.f, 0.f, 0.f, 0.f);
  }
#pragma unroll
  for (int step = 0; step < DIM / 16; ++step) {
    const float4 unit = scaled(x[step], high, low);
    pairs[step] = make_uint2(rounded_pair<__half>(unit.x, unit.y), rounded_pair<__half>(unit.z, unit.w));
  }
}

// The strip's rows as A fragments.
template <int DIM>
__device__ __forceinline__ void load_strip(std::uint32_t (&a)[DIM / 16][4], const UnitRows& rows, int first,
                                           int count) {
  const int row = first + lane_of_warp() / 4;
  uint2 upper[DIM / 16], lower[DIM / 16];
  load_half_row<DIM>(upper, rows, row, row < count);
  load_half_row<DIM>(lower, rows, row + 8, row + 8 < count);
#pragma unroll
  for (int step = 0; step < DIM / 16; ++step) {
    a[step][0] = upper[step].x, a[step][1] = lower[step].x, a[step][2] = upper[step].y, a[step][3] = lower[step].y;
  }
}

// Screen scores of the strip with the rows first .. first + 15 of the other side.
template <int DIM>
__device__ __forceinline__ void screen_others(float (&scores)[2][4], const std::uint32_t (&a)[DIM / 16][4],
                                              const UnitRows& others, int first, int count) {
  uint2 b[2][DIM / 16];
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const int row = first + 8 * n + lane_of_warp() / 4;
    load_half_row<DIM>(b[n], others, row, row < count);
  }
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int step = 0; step < DIM / 16; ++step) multiply_add<__half>(scores[n], a[step], b[n][step].x, b[n][step].y);
  }
}

// A warp's strip: KEYS says whether its rows are keys.
template <bool KEYS, int DIM, int COLUMNS>
struct Strip {
  const Problem& p;
  WarpPlan<DIM, COLUMNS>& plan;
  int first;  // row of the strip in the sequence
  int count;  // of its rows that exist; may be 0
  int queued = 0, candidates = 0;
  unsigned touched = 0;  // rows whose gradient x is not 0
  double dbeta = 0.0, dlambda = 0.0;
  StripSums<DIM> x;
  StripSums<COLUMNS> v;

  __device__ Strip(const Problem& problem, WarpPlan<DIM, COLUMNS>& warp_plan, int first_row, int rows)
      : p(problem), plan(warp_plan), first(first_row), count(max(0, min(kStripRows, rows - first_row))) {
    x.rows = plan.x;
    v.rows = plan.v;
    x.clear();
    if (KEYS) v.clear();
  }

  // g and w a of the queued pairs.
  __device__ __forceinline__ void weigh(const Operands& o) {
    const auto query = [&](std::uint32_t entry) { return KEYS ? entry_other(entry) : first + entry_row(entry); };
    const auto key = [&](std::uint32_t entry) { return KEYS ? first + entry_row(entry) : entry_other(entry); };
#pragma unroll 1
    for (int base = 0; base < queued; base += 32) {
      const std::uint32_t* const entries = plan.entries + base;
      const float s = pair_products<DIM, kPairsAtOnce>(
          entries, queued - base, [&](std::uint32_t entry, int d, float4(&x)[2]) { o.q.load_unit(query(entry), d, x); },
          [&](std::uint32_t entry, int d, float4(&x)[2]) { o.k.load_unit(key(entry), d, x); });
      const float d_weight = pair_products<COLUMNS, kPairsAtOnce>(
          entries, queued - base,
          [&](std::uint32_t entry, int d, float4(&x)[2]) { o.d_output.load_raw(query(entry), d, x); },
          [&](std::uint32_t entry, int d, float4(&x)[2]) { o.v.load_raw(key(entry), d, x); });
      const int place = base + own_pair();
      if (place >= queued) continue;
      const double scale = o.scale[query(plan.entries[place])];
      const float r = excess(s, threshold_at(o.beta, scale));
      float2 factors = make_float2(0.f, 0.f);
      if (survives(r)) {
        const float a = weight(r, p.power);
        factors = make_float2(o.sign * d_weight * weight_derivative(r, p.power), o.sign * a);
        if constexpr (!KEYS) {
          dbeta = fma(scale, static_cast<double>(factors.x), dbeta);
          dlambda = fma(static_cast<double>(a), static_cast<double>(d_weight), dlambda);
        }
      }
      plan.factors[place] = factors;
    }
    __syncwarp();
  }

  // The lane's columns of the other side's unit row; a row with a NaN counts as 0, because its weight carries the NaN.
  __device__ __forceinline__ void load_unit(LaneColumns<DIM>& columns, const UnitRows& rows, int row) const {
    columns.load(rows.data + row * rows.row_stride, rows.dim);
    const float high = rows.high[row], low = rows.low[row];
#pragma unroll
    for (int i = 0; i < columns.kCount; ++i) {
      columns.x[i] = high != high ? 0.f : fmaf(columns.x[i], high, columns.x[i] * low);
    }
  }

  // Adds the queued pairs' products to the sums, several pairs under way at a time.
  __device__ __forceinline__ void accumulate(const Operands& o) {
    constexpr int kAtOnce = 32 / (DIM / 32 + (KEYS ? COLUMNS / 32 : 0));
#pragma unroll 1
    for (int base = 0; base < queued; base += kAtOnce) {
      LaneColumns<DIM> units[kAtOnce];
      LaneColumns<COLUMNS> rows[KEYS ? kAtOnce : 1];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        if (base + n >= queued) continue;
        const float2 factors = plan.factors[base + n];
        const int other = entry_other(plan.entries[base + n]);
        if (factors.x != 0.f) load_unit(units[n], KEYS ? o.q : o.k, other);
        if constexpr (KEYS) {
          if (factors.y != 0.f) {
            rows[n].load(o.d_output.data + other * o.d_output.row_stride, o.d_output.dim);
          }
        }
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        if (base + n >= queued) continue;
        const float2 factors = plan.factors[base + n];
        const std::uint32_t entry = plan.entries[base + n];
        const auto chain = static_cast<std::uint32_t>(entry_row(entry)) << 28 |
                           static_cast<std::uint32_t>(entry_other(entry) / kStripRows);
        if (factors.x != 0.f) {
          x.add(chain, factors.x, units[n]);
          touched |= 1u << entry_row(entry);
        }
        if constexpr (KEYS) {
          if (factors.y != 0.f) v.add(chain, factors.y, rows[n]);
        }
      }
    }
    __syncwarp();
    queued = 0;
  }

  __device__ __noinline__ void work_off(const Operands& o) {
    __syncwarp();
    weigh(o);
    accumulate(o);
  }

  // Screens 16 rows of the other side and queues the candidates. Thresholds of scores: of rows g and g + 8, or with
  // KEYS of the tile's 16 columns.
  __device__ __forceinline__ void screen(const Operands& o, const std::uint32_t (&a)[DIM / 16][4], int first_other,
                                         const float2& own_thresholds, const float* column_thresholds) {
    float scores[2][4] = {};
    screen_others<DIM>(scores, a, KEYS ? o.q : o.k, first_other, KEYS ? o.query_length : o.key_length);
    const int lane = lane_of_warp(), t = lane % 4;
    std::uint32_t bits = 0;
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float own = e < 2 ? own_thresholds.x : own_thresholds.y;
        const float threshold = KEYS ? column_thresholds[8 * n + 2 * t + e % 2] : own;
        if (!(scores[n][e] <= threshold)) bits |= 1u << (e / 2 * 16 + 8 * n + e % 2);
      }
    }
    if (!__any_sync(kWholeWarp, bits != 0)) return;
    bits = __shfl_sync(kWholeWarp, or_over_quad(bits << (2 * t)), lane % 8 * 4);
    bits = lane < 8 ? bits & 0xffffu : lane < kStripRows ? bits >> 16 : 0u;
    const int own = first + lane;
    // Key j is seen by the rows i with j <= offset + i.
    const std::uint32_t seen = KEYS ? ~low_bits(own - o.offset - first_other) & low_bits(o.query_length - first_other)
                                    : low_bits(o.offset + own - first_other + 1);
    queue(o, lane < count ? bits & seen : 0u, first_other);
  }

  __device__ __forceinline__ void queue(const Operands& o, std::uint32_t bits, int first_other) {
    int total;
    const int before = sum_before(__popc(bits), total);
    candidates += total;
    if (queued + total > kQueue) work_off(o);
    int place = queued + before;
    while (bits != 0) {
      const int bit = __ffs(static_cast<int>(bits)) - 1;
      bits &= bits - 1;
      plan.entries[place++] = pair_entry(lane_of_warp(), 0, first_other + bit);
    }
    queued += total;
  }

  // Undoes the L2 norm of the strip's rows and stores them (store_norm_backward in backward_tile.cuh says how).
  __device__ void store_gradient(const UnitRows& rows, const Tensor& target, std::int64_t start) {
    x.flush();
#pragma unroll 1
    for (int r = 0; r < count; ++r) {
      LaneColumns<DIM> result;
#pragma unroll
      for (int i = 0; i < result.kCount; ++i) result.x[i] = plan.x[r][LaneColumns<DIM>::first() + i];
      if ((touched >> r & 1u) != 0) undo_norm(rows, first + r, result);
      result.store(static_cast<float*>(target.data) + start + (first + r) * target.row_stride, rows.dim);
    }
  }

  __device__ __forceinline__ void undo_norm(const UnitRows& rows, int row, LaneColumns<DIM>& sums) const {
    LaneColumns<DIM> raw;
    raw.load(rows.data + row * rows.row_stride, rows.dim);
    double square = 0.0, projection = 0.0;
#pragma unroll
    for (int i = 0; i < raw.kCount; ++i) {
      square += static_cast<double>(raw.x[i]) * raw.x[i];
      projection += static_cast<double>(raw.x[i]) * sums.x[i];
    }
#pragma unroll
    for (int step = 16; step > 0; step /= 2) {
      square += __shfl_xor_sync(kWholeWarp, square, step);
      projection += __shfl_xor_sync(kWholeWarp, projection, step);
    }
    const float factor = rows.high[row];
    const double inverse = factor < 1e12f ? 1.0 / sqrt(square) : static_cast<double>(factor);
    const double along = factor < 1e12f ? projection / square : 0.0;
#pragma unroll
    for (int i = 0; i < raw.kCount; ++i) {
      sums.x[i] = static_cast<float>((sums.x[i] - along * raw.x[i]) * inverse);
    }
  }
};

// The sum over a warp's lanes, in a fixed order.
__device__ inline double sum_over_warp(double sum) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, step);
  return sum;
}

// Task `index` of backward_query_fp32.cu.
template <int DIM, int COLUMNS>
__device__ __forceinline__ void run_row_task(const Problem& p, const BackwardArguments& a, const DenseTasks& dense,
                                             std::int64_t tiles, std::int64_t index, Plan<DIM, COLUMNS>& plan) {
  const BlockTask task = block_task(index, p.shape.query_heads * p.views, p.sequences);
  const int view = task.head % p.views, head = task.head / p.views;
  const Sequence s = sequence_at(p, task.sequence);
  const int row_tile = static_cast<int>(tiles - 1 - task.tile), first_row = row_tile * kTile;
  if (first_row >= s.query_length) return;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = lane_of_warp(), first = first_row + warp * kStripRows;
  const Operands o = make_operands(p, a, s, view, head);
  Strip<false, DIM, COLUMNS> strip(p, plan.warp[warp], first, s.query_length);
  std::uint32_t fragments[DIM / 16][4];
  load_strip<DIM>(fragments, o.q, first, s.query_length);
  const auto threshold = [&](int row) {
    return row < s.query_length
               ? screen_threshold(threshold_at(o.beta, o.scale[row]), static_cast<int>(p.shape.head_dim))
               : CUDART_INF_F;
  };
  const float2 thresholds = make_float2(threshold(first + lane / 4), threshold(first + lane / 4 + 8));
  const int last_key = o.offset + min(first_row + kTile, s.query_length) - 1;
  const int own_last_key = o.offset + first + strip.count - 1;
  SliceWalk walk(a.index + p.index.word_offset(view, head, s.first_row_tile + row_tile), last_key / kKeysPerWord + 1);
  int allowed = 128;
  bool leave = false;
  for (int first_key = walk.next(); first_key >= 0 && !leave; first_key = walk.next()) {
    if (strip.count == 0 || first_key > own_last_key) break;
    strip.screen(o, fragments, first_key, thresholds, nullptr);
    allowed += kStripRows * kSliceKeys / 8;
    leave = strip.candidates > allowed;
  }
  if (!leave) strip.work_off(o);
  const double dbeta = sum_over_warp(strip.dbeta), dlambda = sum_over_warp(strip.dlambda);
  if (lane == 0) {
    plan.dbeta[warp] = dbeta;
    plan.dlambda[warp] = dlambda;
  }
  if (__syncthreads_or(leave) != 0) {
    if (threadIdx.x == 0) list_dense_task(dense, index);
    return;
  }
  const Tensor& dq = a.outputs.dq[view];
  if (dq.data) strip.store_gradient(o.q, dq, row_offset(dq, s.batch, head, s.first_query));
  if (threadIdx.x != 0) return;
  const std::int64_t flat_tile = s.first_row_tile + row_tile;
  const auto sum = [](const double* parts) { return ((parts[0] + parts[1]) + parts[2]) + parts[3]; };
  if (a.dbeta_parts) {
    a.dbeta_parts[(view * p.shape.query_heads + head) * p.index.row_tiles + flat_tile] = -sum(plan.dbeta);
  }
  if (a.dlambda_parts && view == 1) a.dlambda_parts[head * p.index.row_tiles + flat_tile] = -sum(plan.dlambda);
}

// Adds the pairs of one view and query head to a strip of keys; false when there are too many.
template <int DIM, int COLUMNS>
__device__ __forceinline__ bool add_head(const Problem& p, const BackwardArguments& a, const Sequence& s, int view,
                                         int head, int first_key, const Operands& o,
                                         const std::uint32_t (&fragments)[DIM / 16][4], int& allowed,
                                         Strip<true, DIM, COLUMNS>& strip) {
  const int lane = lane_of_warp(), slice = (strip.first - first_key) / kSliceKeys;
  const int row_tiles = (s.query_length + kTile - 1) / kTile;
  float* const thresholds = strip.plan.thresholds;
  RowTileWalk walk(a.index + p.index.word_offset(view, head, s.first_row_tile), p.index.words_per_tile,
                   first_row_tile_of_key(s, first_key), row_tiles, first_key);
  for (int row_tile = walk.next(); row_tile >= 0; row_tile = walk.next()) {
    if ((walk.slices() >> slice & 1u) == 0) continue;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < 2; ++n) {
      const int r = lane + 32 * n, row = row_tile * kTile + r;
      thresholds[r] = row < s.query_length
                          ? screen_threshold(threshold_at(o.beta, o.scale[row]), static_cast<int>(p.shape.head_dim))
                          : CUDART_INF_F;
    }
    __syncwarp();
#pragma unroll 1
    for (int r = 0; r < kTile; r += kStripRows) {
      const int row = row_tile * kTile + r;
      if (row >= s.query_length || strip.first > o.offset + row + kStripRows - 1) continue;
      strip.screen(o, fragments, row, make_float2(0.f, 0.f), thresholds + r);
    }
    allowed += kTile * kStripRows / 8;
    if (strip.candidates > allowed) return false;
  }
  strip.work_off(o);
  return true;
}

// Task `index` of backward_value_fp32.cu, and those of backward_key_fp32.cu for the same keys.
template <int DIM, int COLUMNS>
__device__ __forceinline__ void run_column_task(const Problem& p, const BackwardArguments& a, const DenseTasks& dense,
                                                std::int64_t index, Plan<DIM, COLUMNS>& plan) {
  const BlockTask task = block_task(index, p.shape.key_heads, p.sequences);
  const int key_head = task.head, group = static_cast<int>(p.shape.query_heads / p.shape.key_heads);
  const Sequence s = sequence_at(p, task.sequence);
  const int first_key = static_cast<int>(task.tile) * kTile;
  if (first_key >= s.key_length) return;
  const int warp = static_cast<int>(threadIdx.x) / 32, first = first_key + warp * kStripRows;
  Strip<true, DIM, COLUMNS> strip(p, plan.warp[warp], first, s.key_length);
  int allowed = 256;
  bool leave = false;
  for (int view = 0; view < p.views && !leave && strip.count > 0; ++view) {
    const UnitRows keys = unit_key_rows(p, s, view, key_head);
    std::uint32_t fragments[DIM / 16][4];
    load_strip<DIM>(fragments, keys, first, s.key_length);
    if (view > 0) strip.x.clear();
    strip.touched = 0;
    for (int n = 0; n < group && !leave; ++n) {
      const int head = key_head * group + n;
      const Operands o = make_operands(p, a, s, view, head);
      leave = !add_head<DIM, COLUMNS>(p, a, s, view, head, first_key, o, fragments, allowed, strip);
    }
    const Tensor& dk = a.outputs.dk[view];
    if (dk.data && !leave) strip.store_gradient(keys, dk, row_offset(dk, s.batch, key_head, s.first_key));
  }
  if (__syncthreads_or(leave) != 0) {
    if (threadIdx.x == 0) list_dense_task(dense, index);
    return;
  }
  const Tensor& dv = a.outputs.dv;
  if (!dv.data) return;
  strip.v.flush();
  const std::int64_t start = row_offset(dv, s.batch, key_head, s.first_key);
  for (int r = 0; r < strip.count; ++r) {
    LaneColumns<COLUMNS> columns;
#pragma unroll
    for (int i = 0; i < columns.kCount; ++i) columns.x[i] = strip.plan.v[r][LaneColumns<COLUMNS>::first() + i];
    columns.store(static_cast<float*>(dv.data) + start + (first + r) * dv.row_stride,
                  static_cast<int>(p.shape.value_dim));
  }
}

// The first `column_tasks` blocks work on keys, the others on queries.
template <int DIM, int COLUMNS>
__global__ void __launch_bounds__(kThreads, DIM + COLUMNS == 128 ? 3 : 2)
    backward_fp32_screened_kernel(const __grid_constant__ Problem p, const __grid_constant__ BackwardArguments a,
                                  const __grid_constant__ DenseTasks rows, const __grid_constant__ DenseTasks columns,
                                  std::int64_t tiles, std::int64_t column_tasks) {
  extern __shared__ __align__(16) unsigned char shared_bytes[];
  auto& plan = *reinterpret_cast<Plan<DIM, COLUMNS>*>(shared_bytes);
  if (blockIdx.x < column_tasks) {
    run_column_task(p, a, columns, blockIdx.x, plan);
  } else {
    run_row_task(p, a, rows, tiles, blockIdx.x - column_tasks, plan);
  }
}

template <int DIM, int COLUMNS>
cudaError_t launch(const Problem& p, const BackwardArguments& a, const DenseTasks& rows, const DenseTasks& columns,
                   cudaStream_t stream) {
  const bool by_rows = a.dbeta_parts || a.dlambda_parts || a.outputs.dq[0].data || a.outputs.dq[1].data;
  const bool by_columns = a.outputs.dk[0].data || a.outputs.dk[1].data || a.outputs.dv.data;
  const std::int64_t tiles = by_rows ? (p.longest_query + kTile - 1) / kTile : 0;
  const std::int64_t row_tasks = tiles * p.shape.query_heads * p.views * p.sequences;
  const std::int64_t key_tiles = by_columns ? (p.longest_key + kTile - 1) / kTile : 0;
  const std::int64_t column_tasks = key_tiles * p.shape.key_heads * p.sequences;
  if (row_tasks + column_tasks == 0) return cudaSuccess;
  constexpr auto kSharedBytes = static_cast<int>(sizeof(Plan<DIM, COLUMNS>));
  const auto kernel = backward_fp32_screened_kernel<DIM, COLUMNS>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(row_tasks + column_tasks), kThreads, kSharedBytes, stream>>>(p, a, rows, columns,
                                                                                              tiles, column_tasks);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_backward_fp32_screened(const Problem& p, const BackwardArguments& a, const DenseTasks& rows,
                                          const DenseTasks& columns, cudaStream_t stream) {
  if (p.shape.head_dim > 64) return launch<128, 128>(p, a, rows, columns, stream);
  if (p.shape.value_dim > 64) return launch<64, 128>(p, a, rows, columns, stream);
  return launch<64, 64>(p, a, rows, columns, stream);
}

}  // namespace tda::cuda::portable
