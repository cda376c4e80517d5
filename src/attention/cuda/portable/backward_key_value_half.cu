// A column task of the 16-bit backward: dk of every view and dv of 16 keys of one key head.
//
// The unit of work is a row tile that has a survivor among the keys (BackwardPlan::columns), for each view and query
// head of the group. A column with few units belongs to one warp, which shares nothing with the other three of its
// block; the units of a long column are dealt to the four warps, whose sums are added in a fixed order at the end. A
// unit:
//   Q copied to the warp's buffer;  for every 32 rows: s^T = k q^T (raw, factors after);  for every 16 rows with a
//   survivor: dO copied, dP^T = v dO^T, dv += (w a)^T dO, dk += (g / |q|)^T q.
// A NaN in dO may touch only keys that its row weighs: when a sum of dv is not finite at the end, the task starts over
// with a product that skips zero weights.
#include "attention/cuda/portable/backward_plan.h"
#include "attention/cuda/portable/half_operands.cuh"
#include "attention/cuda/portable/task_claims.cuh"

namespace tda::cuda::portable {
namespace {

constexpr int kWarps = kHalfThreads / 32;
constexpr int kStepRows = 32;  // of a unit whose scores are held at once

// Shared memory: 68 KiB for DIM 64, 98 KiB for 128.
template <class T, int DIM>
struct ColumnTaskPlan {
  static constexpr int kRows = DIM == 64 ? 64 : 32;  // of a unit; a row tile is one or two units
  struct Warp {
    T q[kRows * DIM], d_output[kStepRows * DIM];  // afterwards the warp's sums (sums_of_warp)
    T k[kSliceKeys * DIM], v[kSliceKeys * DIM];
    float2 row[kRows];  // tau, factor
    float key_factor[kSliceKeys];
  };
  Warp warp[kWarps];
};

// What the units of one view and query head have in common.
struct HeadOfColumn {
  HalfRows queries, d_output;
  const float* q_factors;
  float beta, sign, value_scale;
  int offset, first_key;
  bool guarded;
};

template <int DIM>
struct ColumnSums {
  float dk[DIM / 8][4], dv[DIM / 8][4];
};

template <int COUNT>
__device__ __forceinline__ void clear_sums(float (&sums)[COUNT][4]) {
#pragma unroll
  for (int n = 0; n < COUNT; ++n) {
#pragma unroll
    for (int e = 0; e < 4; ++e) sums[n][e] = 0.f;
  }
}

// 16 rows with a survivor: `strip` of the step's dO, `first` of the unit; their excesses in two tiles of sums.
template <class T, int DIM, bool SQUARE>
__device__ __forceinline__ void add_strip(const Problem& p, typename ColumnTaskPlan<T, DIM>::Warp& own,
                                          const HeadOfColumn& head, int strip, int first, const float (&low)[4],
                                          const float (&high)[4], ColumnSums<DIM>& sums) {
  const int lane = fresh_lane(), t = lane % 4;
  float d_weights[2][4] = {}, weights[2][4];
  multiply_rows<T, DIM>(d_weights, own.v, 0, own.d_output, strip * 16, lane);
#pragma unroll
  for (int n = 0; n < 2; ++n) {
    const float4 rows = *reinterpret_cast<const float4*>(own.row + first + 8 * n + 2 * t);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float r = n == 0 ? low[e] : high[e];
      const float row_factor = (e % 2 == 0 ? rows.y : rows.w) * kWeightScale<DIM>;
      const bool live = survives(r);
      weights[n][e] = live ? head.sign * weight_of<SQUARE>(r, p.power) * head.value_scale : 0.f;
      d_weights[n][e] =
          live ? head.sign * d_weights[n][e] * weight_derivative_of<SQUARE>(r, p.power) * row_factor : 0.f;
    }
  }
  const std::uint32_t g[4] = {
      rounded_pair<T>(d_weights[0][0], d_weights[0][1]), rounded_pair<T>(d_weights[0][2], d_weights[0][3]),
      rounded_pair<T>(d_weights[1][0], d_weights[1][1]), rounded_pair<T>(d_weights[1][2], d_weights[1][3])};
  multiply_columns<T, DIM>(sums.dk, g, own.q, first, lane);
  const std::uint32_t w[4] = {
      rounded_pair<T>(weights[0][0], weights[0][1]), rounded_pair<T>(weights[0][2], weights[0][3]),
      rounded_pair<T>(weights[1][0], weights[1][1]), rounded_pair<T>(weights[1][2], weights[1][3])};
  if (!head.guarded) {
    multiply_columns<T, DIM>(sums.dv, w, own.d_output, strip * 16, lane);
  } else {
    multiply_columns<T, DIM, true>(sums.dv, w, own.d_output, strip * 16, lane);
    add_spoiled_products<T, DIM>(sums.dv, weights[0], weights[1], own.d_output, strip * 16);
  }
}

// 32 rows of a unit, rows `first` .. of it; `first_row` is the unit's in the sequence.
template <class T, int DIM, bool SQUARE>
__device__ __forceinline__ void add_step(const Problem& p, typename ColumnTaskPlan<T, DIM>::Warp& own,
                                         const HeadOfColumn& head, int first_row, int first, ColumnSums<DIM>& sums) {
  const int lane = fresh_lane(), t = lane % 4;
  float scores[kStepRows / 8][4] = {};
  multiply_rows<T, DIM>(scores, own.k, 0, own.q, first, lane);
  const float key_factor[2] = {own.key_factor[lane / 4], own.key_factor[lane / 4 + 8]};
#pragma unroll
  for (int n = 0; n < kStepRows / 8; ++n) {
    const float4 rows = *reinterpret_cast<const float4*>(own.row + first + 8 * n + 2 * t);
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      scores[n][e] = e % 2 == 0 ? fmaf(scores[n][e] * key_factor[e / 2], rows.y, -rows.x)
                                : fmaf(scores[n][e] * key_factor[e / 2], rows.w, -rows.z);
    }
  }
  // Pairs that the mask hides, and rows behind the end, are at the edges of the matrix only.
  const int last_row = first_row + first + kStepRows - 1;
  if (head.first_key + kSliceKeys - 1 > head.offset + first_row + first || last_row >= head.queries.rows) {
    const int key = head.first_key + lane / 4;
#pragma unroll
    for (int n = 0; n < kStepRows / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int row = first_row + first + 8 * n + 2 * t + e % 2;
        if (key + 8 * (e / 2) > head.offset + row || row >= head.queries.rows) scores[n][e] = 0.f;
      }
    }
  }
  unsigned strips = 0;
#pragma unroll
  for (int strip = 0; strip < kStepRows / 16; ++strip) {
    if (__any_sync(0xffffffffu, any_survives(scores[2 * strip], scores[2 * strip + 1]))) strips |= 1u << strip;
  }
  if (strips == 0) return;
#pragma unroll
  for (int strip = 0; strip < kStepRows / 16; ++strip) {
    if ((strips >> strip & 1u) == 0) continue;
    load_rows<T, DIM, 16, 32>(own.d_output + 16 * strip * DIM, head.d_output, lane, first_row + first + 16 * strip);
  }
  commit_copies();
  wait_for_copies<0>();
  __syncwarp();
#pragma unroll
  for (int strip = 0; strip < kStepRows / 16; ++strip) {
    if ((strips >> strip & 1u) == 0) continue;
    add_strip<T, DIM, SQUARE>(p, own, head, strip, first + 16 * strip, scores[2 * strip], scores[2 * strip + 1], sums);
  }
  __syncwarp();  // the next step overwrites dO, the next unit Q
}

// One unit: rows first_row .. of a query head, by one warp.
template <class T, int DIM, bool SQUARE>
__device__ __forceinline__ void add_unit(const Problem& p, const BackwardPlan& plan,
                                         typename ColumnTaskPlan<T, DIM>::Warp& own, const HeadOfColumn& head,
                                         int first_row, ColumnSums<DIM>& sums) {
  constexpr int kRows = ColumnTaskPlan<T, DIM>::kRows;
  const int lane = fresh_lane();
  load_rows<T, DIM, kRows, 32>(own.q, head.queries, lane, first_row);
  commit_copies();
  bool unfit = false;
#pragma unroll
  for (int n = 0; n < kRows / 32; ++n) {
    const int r = lane + 32 * n, row = first_row + r;
    const bool exists = row < head.queries.rows;
    const float factor = exists ? product_factor(head.q_factors[row]) : 0.f;
    own.row[r] = make_float2(exists ? head.beta * plan.position_scale[head.offset + row] : 0.f, factor);
    unfit = unfit || factor != factor || !is_regular(p, factor);
  }
  wait_for_copies<0>();
  __syncwarp();
  if (__any_sync(0xffffffffu, unfit)) mend_rows<T, DIM, true>(p, own.q, &own.row[0].y, 2, kRows);
#pragma unroll 1
  for (int first = 0; first < kRows; first += kStepRows) {
    add_step<T, DIM, SQUARE>(p, own, head, first_row, first, sums);
  }
  __syncwarp();
}

// All units of one view, or every fourth for a column that the block's warps share: adds to the warp's sums.
template <class T, int DIM, bool SQUARE>
__device__ __forceinline__ void add_view(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                                         const Sequence& s, std::int64_t slice, int view, int key_head,
                                         typename ColumnTaskPlan<T, DIM>::Warp& own, float value_scale, bool guarded,
                                         bool shared_column, int first_key, ColumnSums<DIM>& sums) {
  constexpr int kRows = ColumnTaskPlan<T, DIM>::kRows;
  const int group = static_cast<int>(p.shape.query_heads / p.shape.key_heads);
  const int row_tiles = (s.query_length + kSliceRows - 1) / kSliceRows;
  const int warp = static_cast<int>(threadIdx.x) / 32;
  int unit = 0;
#pragma unroll 1
  for (int n = 0; n < group; ++n) {
    const int head = key_head * group + n;
    HeadOfColumn common;
    common.queries = half_queries(p, s, view, head);
    common.d_output = half_output_gradients(p, a.d_output, s, head);
    common.q_factors = query_factors(p, s, view, head);
    common.beta = load_beta(p, head);
    common.sign = view_weight(p, view, head);
    common.value_scale = value_scale;
    common.offset = s.key_length - s.query_length;
    common.first_key = first_key;
    common.guarded = guarded;
    BitWalk walk(plan.columns + plan.column_offset(view * p.shape.query_heads + head, slice), (row_tiles + 31) / 32);
    for (int tile = walk.next(); tile >= 0; tile = walk.next()) {
#pragma unroll 1
      for (int first = 0; first < kSliceRows; first += kRows) {
        if (shared_column && unit++ % kWarps != warp) continue;
        add_unit<T, DIM, SQUARE>(p, plan, own, common, tile * kSliceRows + first, sums);
      }
    }
  }
}

// The sums of a shared column, added in the order of the warps; valid in warp 0. Warps lay them down lane by lane in
// the buffers of Q and dO.
template <class T, int DIM>
__device__ __forceinline__ void add_over_warps(ColumnTaskPlan<T, DIM>& shared, float (&sums)[DIM / 8][4]) {
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = own_lane();
  const auto place = [&](int w, int n) { return reinterpret_cast<float4*>(shared.warp[w].q) + n * 32 + lane; };
  __syncwarp();
#pragma unroll
  for (int n = 0; n < DIM / 8; ++n) *place(warp, n) = make_float4(sums[n][0], sums[n][1], sums[n][2], sums[n][3]);
  __syncthreads();
  if (warp == 0) {
#pragma unroll 1
    for (int w = 1; w < kWarps; ++w) {
#pragma unroll
      for (int n = 0; n < DIM / 8; ++n) {
        const float4 other = *place(w, n);
        sums[n][0] += other.x;
        sums[n][1] += other.y;
        sums[n][2] += other.z;
        sums[n][3] += other.w;
      }
    }
  }
  __syncthreads();
}

// A column of this warp alone, or with `shared_column` of the whole block.
template <class T, int DIM, bool SQUARE>
__device__ __forceinline__ void run_column_task(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                                                const BackwardTask& task, bool shared_column,
                                                ColumnTaskPlan<T, DIM>& shared) {
  const int key_head = static_cast<int>(task.head), lane = own_lane(), warp = static_cast<int>(threadIdx.x) / 32;
  auto& own = shared.warp[warp];
  const int group = static_cast<int>(p.shape.query_heads / p.shape.key_heads);
  const Sequence s = sequence_at(p, task.sequence);
  const int first_key = static_cast<int>(task.tile) * kSliceKeys;
  const std::int64_t slice =
      task.tile + BackwardPlan::first_slice(p.key_offsets != nullptr, task.sequence, s.first_key, p.shape.key_length);
  // The smallest of the group's scales, so that one serves all heads that add to the same dv.
  float value_scale = weight_scale<T>(p, key_head * group, s.key_length);
  for (int n = 1; n < group; ++n) {
    value_scale = fminf(value_scale, weight_scale<T>(p, key_head * group + n, s.key_length));
  }
  const bool stores = !shared_column || warp == 0;
  load_rows<T, DIM, kSliceKeys, 32>(own.v, half_values(p, s, key_head), lane, first_key);
#pragma unroll 1
  for (int guarded = 0; guarded < 2; ++guarded) {
    ColumnSums<DIM> sums;
    clear_sums(sums.dv);
#pragma unroll 1
    for (int view = 0; view < p.views; ++view) {
      const HalfRows keys = half_keys(p, s, view, key_head);
      const float* const k_factors = key_factors(p, s, view, key_head) + first_key;
      load_rows<T, DIM, kSliceKeys, 32>(own.k, keys, lane, first_key);
      commit_copies();
      bool unfit = false;
      if (lane < kSliceKeys) {
        const float factor = first_key + lane < s.key_length ? product_factor(k_factors[lane]) : 0.f;
        own.key_factor[lane] = factor;
        unfit = factor != factor || !is_regular(p, factor);
      }
      if (__any_sync(0xffffffffu, unfit)) {
        wait_for_copies<0>();
        __syncwarp();
        mend_rows<T, DIM, true>(p, own.k, own.key_factor, 1, kSliceKeys);
      }
      clear_sums(sums.dk);
      add_view<T, DIM, SQUARE>(p, a, plan, s, slice, view, key_head, own, value_scale, guarded != 0, shared_column,
                               first_key, sums);
      wait_for_copies<0>();
      __syncwarp();
      const Tensor& target = a.outputs.dk[view];
      if (target.data && guarded == 0) {
        if (shared_column) add_over_warps<T, DIM>(shared, sums.dk);
        if (stores) {
          store_half_gradient<T, DIM>(p.normalize, own.k, own.key_factor, k_factors, keys, first_key, 0,
                                      1.f / kWeightScale<DIM>, target,
                                      row_offset(target, s.batch, key_head, s.first_key), a.pairs_dk[view], sums.dk);
        }
      }
      __syncwarp();
    }
    const Tensor& target = a.outputs.dv;
    if (!target.data) return;
    if (shared_column) add_over_warps<T, DIM>(shared, sums.dv);
    bool spoiled = false;
#pragma unroll
    for (int n = 0; n < DIM / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) spoiled = spoiled || !isfinite(sums.dv[n][e]);
    }
    spoiled = spoiled && stores && guarded == 0;
    if (shared_column ? __syncthreads_or(spoiled) != 0 : __any_sync(0xffffffffu, spoiled) != 0) continue;
    if (!stores) return;
    const float unscale = 1.f / value_scale;
#pragma unroll
    for (int n = 0; n < DIM / 8; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) sums.dv[n][e] *= unscale;
    }
    T* const first = static_cast<T*>(target.data) + row_offset(target, s.batch, key_head, s.first_key + first_key);
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = lane / 4 + 8 * half;
      if (first_key + row >= s.key_length) continue;
      store_sums<T, DIM>(first + row * target.row_stride, sums.dv, half, static_cast<int>(p.shape.value_dim),
                         a.pairs_dv);
    }
    return;
  }
}

template <int DIM>
constexpr int kBlocksPerProcessor = DIM == 64 ? 3 : 2;

template <class T, int DIM, bool SQUARE>
__global__ void __launch_bounds__(kHalfThreads, kBlocksPerProcessor<DIM>)
    backward_key_value_half_kernel(const __grid_constant__ Problem p, const __grid_constant__ BackwardArguments a,
                                   const __grid_constant__ BackwardPlan plan, KernelOrder order) {
  begin_kernel(order);
  extern __shared__ __align__(128) unsigned char shared_bytes[];
  auto& shared = *reinterpret_cast<ColumnTaskPlan<T, DIM>*>(shared_bytes);
  claim_tasks<kHalfThreads / 32>(plan.column_tasks, [&](const BackwardTask& task, bool by_block) {
    run_column_task<T, DIM, SQUARE>(p, a, plan, task, by_block, shared);
  });
  end_kernel(order);
}

template <class T, int DIM, bool SQUARE>
cudaError_t launch_instance(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                            cudaStream_t stream) {
  // Behind the kernel of the rows, of which this one needs nothing.
  const KernelOrder order = p.longest_query > 0 ? KernelOrder::kBesidePrevious : KernelOrder::kAfterPrevious;
  return launch_staying(backward_key_value_half_kernel<T, DIM, SQUARE>, kHalfThreads,
                        plan.dense ? 1 : kBlocksPerProcessor<DIM>, static_cast<int>(sizeof(ColumnTaskPlan<T, DIM>)),
                        plan.column_tasks.capacity, stream, p, a, plan, order);
}

}  // namespace

cudaError_t launch_backward_key_value_half(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan,
                                           cudaStream_t stream) {
  return launch_fitting_instance(
      p, [&]<class T, int DIM, bool SQUARE>() { return launch_instance<T, DIM, SQUARE>(p, a, plan, stream); });
}

}  // namespace tda::cuda::portable
