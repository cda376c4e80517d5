// What the two kernels of the screened fp32 backward share, and a warp's exact work on the candidates of its own strip.
#pragma once

#include "attention/cuda/portable/live_slices.cuh"
#include "attention/cuda/portable/screen_product.cuh"

namespace tda::cuda::portable {

constexpr int kStrips = 4, kTile = kStrips * kStripRows;  // of a task
static_assert(kTile == kSliceRows && kStripRows == kSliceKeys);
constexpr int kQueue = 128;
constexpr int kPairsAtOnce = 4;  // under way

template <int DIM, int COLUMNS>
struct WarpPlan {
  float x[kStripRows][DIM];      // dq or dk, with respect to unit vectors
  float v[kStripRows][COLUMNS];  // dv
  std::uint32_t entries[kQueue];
  float2 factors[kQueue];        // g, w a
  float thresholds[kSliceRows];  // of a row tile, as the screen wants them
};

// What the pairs of one view and query head are computed from.
struct Operands {
  UnitRows q, k, v, d_output;
  const double* scale;  // c_i of query row 0
  float beta, sign;
  int offset, query_length, key_length;
};

__device__ inline Operands make_operands(const Problem& p, const BackwardArguments& a, const Sequence& s, int view,
                                         int head) {
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

// Candidates among the 16 x 16 pairs, with KEYS by the thresholds of the lane's columns (8 n + 2 t + e), else by those
// of its rows g and g + 8: in lanes 0 .. 15 the bits of row `lane`, 0 in the others; the mask is not applied.
template <bool KEYS, class OfColumn>
__device__ __forceinline__ std::uint32_t candidate_rows(const float (&scores)[2][4], const float2& of_rows,
                                                        OfColumn of_column) {
  const int lane = lane_of_warp();
  std::uint32_t bits = 0;
#pragma unroll
  for (int n = 0; n < 2; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float threshold = KEYS ? of_column(n, e % 2) : e < 2 ? of_rows.x : of_rows.y;
      if (!(scores[n][e] <= threshold)) bits |= 1u << (e / 2 * 16 + 8 * n + e % 2);
    }
  }
  if (!__any_sync(kWholeWarp, bits != 0)) return 0;
  bits = __shfl_sync(kWholeWarp, or_over_quad(bits << (lane % 4 * 2)), lane % 8 * 4);
  return lane < 8 ? bits & 0xffffu : lane < kStripRows ? bits >> 16 : 0u;
}

// Which of the other side's rows first_other .. + 31 row `own` may meet: key j is seen by the rows i, j <= offset + i.
template <bool KEYS>
__device__ __forceinline__ std::uint32_t pairs_seen(const Operands& o, int own, int first_other) {
  return KEYS ? ~low_bits(own - o.offset - first_other) & low_bits(o.query_length - first_other)
              : low_bits(o.offset + own - first_other + 1);
}

// What the screen compares the scores of query `row` with.
__device__ __forceinline__ float screen_threshold_of_row(const Problem& p, const Operands& o, int row) {
  return row < o.query_length ? screen_threshold(threshold_at(o.beta, o.scale[row]), static_cast<int>(p.shape.head_dim))
                              : CUDART_INF_F;
}

// The share of one row tile (or, with `strip`, of one of its strips), by one thread.
__device__ inline void store_shares(const Problem& p, const BackwardArguments& a, int view, int head,
                                    std::int64_t flat_tile, int strip, double dbeta, double dlambda) {
  const std::int64_t tile = head * p.index.row_tiles + flat_tile;
  const std::int64_t tiles_of_view = p.shape.query_heads * p.index.row_tiles;
  if (a.dbeta_parts) a.dbeta_parts[(view * tiles_of_view + tile) * a.shares_per_tile + strip] = -dbeta;
  if (a.dlambda_parts && view == 1) a.dlambda_parts[tile * a.shares_per_tile + strip] = -dlambda;
}

// The sum over a warp's lanes, in a fixed order.
__device__ inline double sum_over_warp(double sum) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) sum += __shfl_xor_sync(kWholeWarp, sum, step);
  return sum;
}

// Turns a gradient with respect to unit row `row` into one of the row itself (store_norm_backward in backward_tile.cuh
// says how), by a warp.
template <int DIM>
__device__ __forceinline__ void undo_norm(const UnitRows& rows, int row, LaneColumns<DIM>& sums) {
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

// A warp's strip: KEYS says whether its rows are keys. A warp computes what one queue holds; beyond that it only counts
// (`overflow`), because then the strip is better shared by a block.
template <bool KEYS, int DIM, int COLUMNS>
struct BackwardStrip {
  const Problem& p;
  WarpPlan<DIM, COLUMNS>& plan;
  int first;  // row of the strip in the sequence
  int count;  // of its rows that exist; may be 0
  int queued = 0, candidates = 0;
  bool overflow = false;
  unsigned touched = 0;  // rows whose gradient x is not 0
  double dbeta = 0.0, dlambda = 0.0;
  StripSums<DIM> x;
  StripSums<COLUMNS> v;

  __device__ BackwardStrip(const Problem& problem, WarpPlan<DIM, COLUMNS>& warp_plan, int first_row, int rows)
      : p(problem), plan(warp_plan), first(first_row), count(max(0, min(kStripRows, rows - first_row))) {
    x.rows = plan.x;
    v.rows = plan.v;
    x.clear(kStripRows);
    if (KEYS) v.clear(kStripRows);
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
      const double scale = __ldg(o.scale + query(plan.entries[place]));
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
  __device__ static __forceinline__ void load_unit(LaneColumns<DIM>& columns, const UnitRows& rows, int row) {
    columns.load(rows.data + row * rows.row_stride, rows.dim);
    const float high = __ldg(rows.high + row), low = __ldg(rows.low + row);
#pragma unroll
    for (int i = 0; i < columns.kCount; ++i) {
      columns.x[i] = high != high ? 0.f : fmaf(columns.x[i], high, columns.x[i] * low);
    }
  }

  // Adds the queued pairs' products to the sums, several pairs under way at a time. Works on copies, which stay in
  // registers: this object itself lies in memory.
  __device__ __forceinline__ void accumulate(const Operands& o) {
    StripSums<DIM> x_sums = x;
    StripSums<COLUMNS> v_sums = v;
    const UnitRows others = KEYS ? o.q : o.k, d_output = o.d_output;
    unsigned marks = 0;
    const int pairs = queued;
    const std::uint32_t* const entries = plan.entries;
    const float2* const pair_factors = plan.factors;
    constexpr int kAtOnce = 32 / (DIM / 32 + (KEYS ? COLUMNS / 32 : 0));
#pragma unroll 1
    for (int base = 0; base < pairs; base += kAtOnce) {
      LaneColumns<DIM> units[kAtOnce];
      LaneColumns<COLUMNS> rows[KEYS ? kAtOnce : 1];
      float2 factors[kAtOnce];
      std::uint32_t own[kAtOnce];
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        own[n] = entries[min(base + n, pairs - 1)];
        factors[n] = base + n < pairs ? pair_factors[base + n] : make_float2(0.f, 0.f);
        const int other = entry_other(own[n]);
        if (factors[n].x != 0.f) load_unit(units[n], others, other);
        if constexpr (KEYS) {
          if (factors[n].y != 0.f) rows[n].load(d_output.data + other * d_output.row_stride, d_output.dim);
        }
      }
#pragma unroll
      for (int n = 0; n < kAtOnce; ++n) {
        const auto row = static_cast<std::uint32_t>(entry_row(own[n]));
        const std::uint32_t chain = row << 28 | static_cast<std::uint32_t>(entry_other(own[n]) / kStripRows);
        if (factors[n].x != 0.f) {
          x_sums.add(chain, factors[n].x, units[n]);
          marks |= 1u << row;
        }
        if constexpr (KEYS) {
          if (factors[n].y != 0.f) v_sums.add(chain, factors[n].y, rows[n]);
        }
      }
    }
    __syncwarp();
    x = x_sums;
    if constexpr (KEYS) v = v_sums;
    touched |= marks;
    queued = 0;
  }

  __device__ __forceinline__ void work_off(const Operands& o) {
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
    const int lane = lane_of_warp();
    const std::uint32_t bits = candidate_rows<KEYS>(
        scores, own_thresholds, [&](int n, int e) { return column_thresholds[8 * n + lane % 4 * 2 + e]; });
    queue(lane < count ? bits & pairs_seen<KEYS>(o, first + lane, first_other) : 0u, first_other);
  }

  __device__ __forceinline__ void queue(std::uint32_t bits, int first_other) {
    int total;
    const int before = sum_before(__popc(bits), total);
    candidates += total;
    overflow = overflow || queued + total > kQueue;
    if (total == 0 || overflow) return;
    int place = queued + before;
    while (bits != 0) {
      const int bit = __ffs(static_cast<int>(bits)) - 1;
      bits &= bits - 1;
      plan.entries[place++] = pair_entry(lane_of_warp(), 0, first_other + bit);
    }
    queued += total;
  }

  // Undoes the L2 norm of the strip's rows and stores them.
  __device__ void store_gradient(const UnitRows& rows, const Tensor& target, std::int64_t start) {
    x.flush();
#pragma unroll 1
    for (int r = 0; r < count; ++r) {
      LaneColumns<DIM> result;
#pragma unroll
      for (int i = 0; i < result.kCount; ++i) result.x[i] = plan.x[r][LaneColumns<DIM>::first() + i];
      const int row = first + r;
      if ((touched >> r & 1u) != 0) undo_norm(rows, row, result);
      result.store(static_cast<float*>(target.data) + start + row * target.row_stride, rows.dim);
    }
  }
};

}  // namespace tda::cuda::portable
