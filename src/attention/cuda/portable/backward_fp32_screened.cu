// Backward of fp32 inputs with few survivors: dq, dk, dv and the shares of dbeta and dlambda pair by pair.
//
// Tasks are those of the dense kernels:
//   Row tasks (dq, dbeta, dlambda): 64 query rows of one view and head, which walk the live slices of their row tile.
//   Column tasks (dk of every view, dv): 64 keys of one key head, which walk the row tiles in which they have a
//   survivor, for each view and query head of the group.
// A task is four strips of 16 rows (or keys). A warp works on a strip and shares nothing with others until the end: a
// screen of 16 x 16 pairs (unit rows rounded to fp16 on the way from global memory into the fragments of mma.sync) puts
// candidates into its queue, which is worked off at the end: s and dP of 32 pairs at a time in fp32, then g times the
// unit rows (and w a times dO) into sums in shared memory. Every sum has one owner and a fixed order.
// Strips with more candidates than a queue holds are counted only, and their task goes, through lists on the device, to
//   - backward_fp32_divided.cu, in which a block shares a strip: a few long strips would otherwise keep the whole
//   device
//     waiting;
//   - the dense kernels, when more than a quarter of the pairs are candidates.
// Shared memory: 39 KiB for 64 columns and 71 KiB for 128. Cost: 150 instructions of a warp for each 16 x 16 pairs
// screened, about 75 a candidate.
#include "attention/cuda/portable/backward_pairs.cuh"

namespace tda::cuda::portable {
namespace {

// A strip is dense when more than one pair in kDenseShare is a candidate, and kDenseSlack: the first rows, whose
// thresholds are near 0, are short.
constexpr int kDenseShare = 4, kDenseSlack = 4 * kQueue;

constexpr int kThreads = 32 * kStrips;

template <int DIM, int COLUMNS>
struct Plan {
  WarpPlan<DIM, COLUMNS> warp[kStrips];
  double dbeta[kStrips], dlambda[kStrips];
};

// Where the tasks go that this kernel does not finish.
struct Lists {
  DenseTasks divided, dense;
};

// Hands the task over where a warp says so; all threads call it and agree on the result.
__device__ inline bool hand_over(const Lists& lists, std::int64_t task, bool overflow, bool dense) {
  const bool any_dense = __syncthreads_or(dense) != 0;
  const bool any_overflow = __syncthreads_or(overflow) != 0;
  if (threadIdx.x == 0 && any_dense) list_dense_task(lists.dense, task);
  if (threadIdx.x == 0 && any_overflow && !any_dense) list_dense_task(lists.divided, task);
  return any_dense || any_overflow;
}

// Task `index` of backward_query_fp32.cu.
template <int DIM, int COLUMNS>
__device__ __forceinline__ void run_row_task(const Problem& p, const BackwardArguments& a, const Lists& lists,
                                             std::int64_t tiles, std::int64_t index, Plan<DIM, COLUMNS>& plan) {
  const BlockTask task = block_task(index, p.shape.query_heads * p.views, p.sequences);
  const int view = task.head % p.views, head = task.head / p.views;
  const Sequence s = sequence_at(p, task.sequence);
  const int row_tile = static_cast<int>(tiles - 1 - task.tile), first_row = row_tile * kTile;
  if (first_row >= s.query_length) return;
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = lane_of_warp();
  const int first = first_row + warp * kStripRows;
  const Operands o = make_operands(p, a, s, view, head);
  BackwardStrip<false, DIM, COLUMNS> strip(p, plan.warp[warp], first, s.query_length);
  std::uint32_t fragments[DIM / 16][4];
  load_strip<DIM>(fragments, o.q, first, s.query_length);
  const float2 thresholds =
      make_float2(screen_threshold_of_row(p, o, first + lane / 4), screen_threshold_of_row(p, o, first + lane / 4 + 8));
  const int last_key = o.offset + min(first_row + kTile, s.query_length) - 1;
  const int own_last_key = o.offset + first + strip.count - 1;
  SliceWalk walk(a.index + p.index.word_offset(view, head, s.first_row_tile + row_tile), last_key / kKeysPerWord + 1);
  int allowed = kDenseSlack;
  bool dense = false;
  for (int first_key = walk.next(); first_key >= 0 && !dense; first_key = walk.next()) {
    if (strip.count == 0 || first_key > own_last_key) break;
    strip.screen(o, fragments, first_key, thresholds, nullptr);
    allowed += kStripRows * kSliceKeys / kDenseShare;
    dense = strip.candidates > allowed;
  }
  if (!dense && !strip.overflow) strip.work_off(o);
  const double dbeta = sum_over_warp(strip.dbeta), dlambda = sum_over_warp(strip.dlambda);
  if (lane == 0) {
    plan.dbeta[warp] = dbeta;
    plan.dlambda[warp] = dlambda;
  }
  if (hand_over(lists, index, strip.overflow, dense)) return;
  const Tensor& dq = a.outputs.dq[view];
  if (dq.data) strip.store_gradient(o.q, dq, row_offset(dq, s.batch, head, s.first_query));
  if (threadIdx.x != 0) return;
  const auto sum = [](const double(&parts)[kStrips]) { return ((parts[0] + parts[1]) + parts[2]) + parts[3]; };
  store_shares(p, a, view, head, s.first_row_tile + row_tile, 0, sum(plan.dbeta), sum(plan.dlambda));
}

// Adds the pairs of one view and query head to a strip of keys; false when the strip turns out to be dense.
template <int DIM, int COLUMNS>
__device__ __forceinline__ bool add_head(const Problem& p, const BackwardArguments& a, const Sequence& s, int view,
                                         int head, int first_key, const Operands& o,
                                         const std::uint32_t (&fragments)[DIM / 16][4], int& allowed,
                                         BackwardStrip<true, DIM, COLUMNS>& strip) {
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
      const int r = lane + 32 * n;
      thresholds[r] = screen_threshold_of_row(p, o, row_tile * kTile + r);
    }
    __syncwarp();
#pragma unroll 1
    for (int r = 0; r < kTile; r += kStripRows) {
      const int row = row_tile * kTile + r;
      if (row >= s.query_length || strip.first > o.offset + row + kStripRows - 1) continue;
      strip.screen(o, fragments, row, make_float2(0.f, 0.f), thresholds + r);
    }
    allowed += kTile * kStripRows / kDenseShare;
    if (strip.candidates > allowed) return false;
  }
  if (!strip.overflow) strip.work_off(o);
  return true;
}

// Task `index` of backward_value_fp32.cu, and those of backward_key_fp32.cu for the same keys.
template <int DIM, int COLUMNS>
__device__ __forceinline__ void run_column_task(const Problem& p, const BackwardArguments& a, const Lists& lists,
                                                std::int64_t index, Plan<DIM, COLUMNS>& plan) {
  const BlockTask task = block_task(index, p.shape.key_heads, p.sequences);
  const int key_head = task.head, group = static_cast<int>(p.shape.query_heads / p.shape.key_heads);
  const Sequence s = sequence_at(p, task.sequence);
  const int first_key = static_cast<int>(task.tile) * kTile;
  if (first_key >= s.key_length) return;
  const int warp = static_cast<int>(threadIdx.x) / 32, first = first_key + warp * kStripRows;
  BackwardStrip<true, DIM, COLUMNS> strip(p, plan.warp[warp], first, s.key_length);
  int allowed = kDenseSlack;
  bool dense = false;
  for (int view = 0; view < p.views && !dense && strip.count > 0; ++view) {
    const UnitRows keys = unit_key_rows(p, s, view, key_head);
    std::uint32_t fragments[DIM / 16][4];
    load_strip<DIM>(fragments, keys, first, s.key_length);
    if (view > 0) strip.x.clear(kStripRows);
    strip.touched = 0;
    for (int n = 0; n < group && !dense; ++n) {
      const int head = key_head * group + n;
      const Operands o = make_operands(p, a, s, view, head);
      dense = !add_head<DIM, COLUMNS>(p, a, s, view, head, first_key, o, fragments, allowed, strip);
    }
    const Tensor& dk = a.outputs.dk[view];
    if (dk.data && !dense && !strip.overflow) {
      strip.store_gradient(keys, dk, row_offset(dk, s.batch, key_head, s.first_key));
    }
  }
  if (hand_over(lists, index, strip.overflow, dense)) return;
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
                                  const __grid_constant__ Lists rows, const __grid_constant__ Lists columns,
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
cudaError_t launch(const Problem& p, const BackwardArguments& a, const Lists& rows, const Lists& columns,
                   cudaStream_t stream) {
  const bool by_rows = a.dbeta_parts || a.dlambda_parts || a.outputs.dq[0].data || a.outputs.dq[1].data;
  const bool by_columns = a.outputs.dk[0].data || a.outputs.dk[1].data || a.outputs.dv.data;
  const std::int64_t tiles = by_rows ? (p.longest_query + kTile - 1) / kTile : 0;
  const std::int64_t row_tasks = tiles * p.shape.query_heads * p.views * p.sequences;
  const std::int64_t key_tiles = by_columns ? (p.longest_key + kTile - 1) / kTile : 0;
  const std::int64_t column_tasks = key_tiles * p.shape.key_heads * p.sequences;
  if (row_tasks + column_tasks == 0) return cudaSuccess;
  constexpr auto kBytes = static_cast<int>(sizeof(Plan<DIM, COLUMNS>));
  const auto kernel = backward_fp32_screened_kernel<DIM, COLUMNS>;
  const cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kBytes);
  if (error != cudaSuccess) return error;
  kernel<<<static_cast<unsigned>(row_tasks + column_tasks), kThreads, kBytes, stream>>>(p, a, rows, columns, tiles,
                                                                                        column_tasks);
  return cudaGetLastError();
}

}  // namespace

cudaError_t launch_backward_fp32_screened(const Problem& p, const BackwardArguments& a, const ScreenedTasks& tasks,
                                          cudaStream_t stream) {
  const Lists rows{tasks.divided_rows, tasks.rows}, columns{tasks.divided_columns, tasks.values};
  if (p.shape.head_dim > 64) return launch<128, 128>(p, a, rows, columns, stream);
  if (p.shape.value_dim > 64) return launch<64, 128>(p, a, rows, columns, stream);
  return launch<64, 64>(p, a, rows, columns, stream);
}

}  // namespace tda::cuda::portable
