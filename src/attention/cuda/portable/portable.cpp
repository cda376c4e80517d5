// The portable family: correct on every device from sm_80, for every case of the contract.
#include <algorithm>
#include <bit>
#include <cstdlib>
#include <limits>
#include <string>
#include <string_view>

#include "attention/cuda/common/kernel_family.h"
#include "attention/cuda/portable/backward_plan.h"
#include "attention/cuda/portable/kernels.h"
#include "attention/cuda/portable/pairs/pairs.h"
#include "attention/cuda/portable/problem.h"

namespace tda::cuda::portable {
namespace {

// Hands out consecutive pieces of the workspace, each aligned to 256 bytes; with a null base it only measures.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <class T>
  T* take(std::int64_t count) {
    T* const piece = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (static_cast<std::size_t>(count) * sizeof(T) + 255) / 256 * 256;
    return piece;
  }
  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

std::int64_t longest_key(const AttentionShape& shape, const PackedDocuments* documents) {
  return documents ? documents->longest_key : shape.key_length;
}

// `fp32_kernels`: they run, or may run, and want the low pieces.
void place_scales(const AttentionShape& s, int views, bool fp32_kernels, Arena& arena, Problem* problem) {
  for (int view = 0; view < views; ++view) {
    float* const query_scale = arena.take<float>(s.query_heads * s.batch * s.query_length);
    float* const key_scale = arena.take<float>(s.key_heads * s.batch * s.key_length);
    float* const query_low = fp32_kernels ? arena.take<float>(s.query_heads * s.batch * s.query_length) : nullptr;
    float* const key_low = fp32_kernels ? arena.take<float>(s.key_heads * s.batch * s.key_length) : nullptr;
    if (!problem) continue;
    problem->query_scale[view] = query_scale;
    problem->key_scale[view] = key_scale;
    problem->query_scale_low[view] = query_low;
    problem->key_scale_low[view] = key_low;
  }
}

constexpr int kStripsOfTile = kSliceRows / kSliceKeys;  // that a screened fp32 backward divides a task into

void place_parts(const AttentionShape& s, int views, const SurvivorIndexLayout& index, bool screened, Arena& arena,
                 BackwardArguments* arguments) {
  const int shares_per_tile = screened ? kStripsOfTile : 1;
  const std::int64_t shares = s.query_heads * index.row_tiles * shares_per_tile;
  double* const dbeta = arena.take<double>(views * shares);
  double* const dlambda = views == 2 ? arena.take<double>(shares) : nullptr;
  if (!arguments) return;
  arguments->shares_per_tile = shares_per_tile;
  arguments->dbeta_parts = arguments->outputs.dbeta ? dbeta : nullptr;
  arguments->dlambda_parts = arguments->outputs.dlambda ? dlambda : nullptr;
}

// Whether heads may go to the fused kernel (FusedHeads): a function of shapes and options. Testing aid, read at each
// call: TDA_SM90_FUSED_BACKWARD=off forbids it, on allows it for short sequences, too.
bool may_fuse(const AttentionShape& s, const AttentionOptions& options, const PackedDocuments* documents) {
  const char* const choice = std::getenv("TDA_SM90_FUSED_BACKWARD");
  const std::string_view wish = choice != nullptr ? choice : "";
  const std::int64_t shortest = wish == "on" ? 1 : kFusedLength;
  return wish != "off" && options.data_type == DataType::kBFloat16 && s.head_dim == 64 && s.value_dim == 64 &&
         s.query_length == s.key_length && s.query_length >= shortest && documents == nullptr;
}

// The counters come right behind the shares of dbeta and dlambda, and other numbers that start at 0 behind them: one
// fill clears all. Returns the end of those. `lists`: the index has lists of survivors; `fused`: may_fuse().
std::size_t place_plan(const AttentionShape& s, int views, const SurvivorIndexLayout& index,
                       const PackedDocuments* documents, bool lists, bool fused, Arena& arena, BackwardPlan* plan) {
  const std::int64_t sequences = documents ? documents->count : s.batch;
  const std::int64_t longest_query = documents ? documents->longest_query : s.query_length;
  const std::int64_t longest_key = documents ? documents->longest_key : s.key_length;
  BackwardPlan placed{};
  placed.column_slices = BackwardPlan::first_slice(documents != nullptr, sequences, s.key_length, s.key_length);
  placed.words_per_slice = (longest_query + kSliceRows * 32 - 1) / (kSliceRows * 32);
  BackwardCounters* const counters = arena.take<BackwardCounters>(1);
  PairPlan& pairs = placed.pairs;
  FusedHeads& heads = placed.fused;
  const std::int64_t all_heads = s.key_heads * s.batch, all_keys = all_heads * s.key_length;
  const std::int64_t group = s.query_heads / s.key_heads;
  const std::int64_t parts = (s.query_length + 2 * kSliceRows - 1) / (2 * kSliceRows) * views * group;
  if (fused) {
    heads.interleaved = static_cast<int>((kFusedTasks + parts - 1) / parts);
    heads.slots = static_cast<int>(std::min(all_heads, std::int64_t{2} * heads.interleaved));
    heads.counters = arena.take<FusedCounters>(1);
    heads.counted = arena.take<std::uint32_t>(2 * all_heads);
    heads.finished = arena.take<std::uint32_t>(2 * all_heads);
    heads.turns = arena.take<std::uint32_t>(heads.slots * parts * 4);
    heads.chosen = arena.take<std::uint8_t>(all_heads);
  }
  if (lists) {
    pairs.key_count = arena.take<std::uint32_t>(all_keys);
    pairs.used = arena.take<std::uint32_t>(all_heads);
    pairs.extreme = arena.take<std::uint32_t>(2 * all_heads);
    pairs.long_count = arena.take<std::uint32_t>(1);
  }
  const std::size_t cleared = arena.used();
  if (fused) {
    heads.heads = arena.take<std::uint32_t>(all_heads);
    heads.sums = arena.take<float>(heads.slots * parts * 2 * kSliceRows * s.head_dim);
  }
  if (lists) {
    pairs.records_per_head = views * group * s.query_length * kRecordsPerRow;
    const std::int64_t last_row = std::max(s.query_length, std::int64_t{1}) - 1;
    pairs.row_bits = static_cast<int>(std::bit_width(static_cast<std::uint64_t>(last_row)));
    pairs.key_end = arena.take<std::uint32_t>(all_keys);
    pairs.records = arena.take<PairRecord>(all_heads * pairs.records_per_head);
    pairs.long_keys = arena.take<std::int64_t>(all_heads * (pairs.records_per_head / kLongRun));
    pairs.live = arena.take<std::uint8_t>(views * s.query_heads * index.row_tiles);
  }
  placed.columns = arena.take<std::uint32_t>(placed.column_offset(views * s.query_heads, 0));
  placed.position_scale = arena.take<float>(longest_key);
  const auto place_list = [&](std::int64_t capacity, TaskCounters* own) {
    return TaskList{arena.take<BackwardTask>(kTaskBuckets * capacity), capacity, own};
  };
  placed.row_tasks = place_list(index.row_tiles * s.query_heads * views, counters ? &counters->rows : nullptr);
  placed.column_tasks = place_list(placed.column_slices * s.key_heads, counters ? &counters->columns : nullptr);
  const auto blocks_of = [&](std::int64_t length, std::int64_t rows) {  // of all sequences; an upper bound if packed
    return documents ? length / rows + sequences : sequences * ((length + rows - 1) / rows);
  };
  const std::int64_t key_blocks = blocks_of(s.key_length, 8 * kSliceKeys);
  placed.dense_row_tasks = place_list(blocks_of(s.query_length, 2 * kSliceRows) * s.query_heads * views,
                                      counters ? &counters->dense_rows : nullptr);
  placed.dense_column_tasks = place_list(key_blocks * s.key_heads, counters ? &counters->dense_columns : nullptr);
  const auto place_empty = [&](const TaskList& list, TaskCounters* own) {
    return TaskList{arena.take<BackwardTask>(list.capacity), list.capacity, own};
  };
  placed.empty_row_blocks = place_empty(placed.dense_row_tasks, counters ? &counters->empty_rows : nullptr);
  placed.empty_column_blocks = place_empty(placed.dense_column_tasks, counters ? &counters->empty_columns : nullptr);
  if (plan) *plan = placed;
  return cleared;
}

void place_flag(Arena& arena, Problem* problem) {
  unsigned* const flag = arena.take<unsigned>(1);
  if (problem) problem->irregular = flag;
}

// What the forward's fp32 screen keeps.
void place_screen(const AttentionShape& s, int views, const PackedDocuments* documents, Arena& arena, Problem& problem,
                  DenseTasks& dense, DenseTasks& divided) {
  const std::int64_t row_blocks = documents ? s.query_length / kDenseRows + documents->count
                                            : s.batch * ((s.query_length + kDenseRows - 1) / kDenseRows);
  problem.half_pitch = (s.head_dim + 7) / 8 * 8;
  problem.position_scale = arena.take<double>(longest_key(s, documents));
  problem.dense_counters = arena.take<std::uint32_t>(kDenseCounters);
  dense.tasks = arena.take<std::uint32_t>(s.query_heads * row_blocks);
  dense.listed = problem.dense_counters;
  dense.claimed = problem.dense_counters + 1;
  divided = {arena.take<std::uint32_t>(s.query_heads * row_blocks), problem.dense_counters + 2,
             problem.dense_counters + 3, kForwardStrips};
  for (int view = 0; view < views; ++view) {
    problem.half_query[view] = arena.take<std::uint16_t>(s.query_heads * s.batch * s.query_length * problem.half_pitch);
    problem.half_key[view] = arena.take<std::uint16_t>(s.key_heads * s.batch * s.key_length * problem.half_pitch);
  }
}

constexpr int kScreenedCounters = 9;

// What the fp32 backward keeps when it is screened: the tasks that its first kernel leaves. The counters come right
// behind the shares of dbeta and dlambda: one fill clears both.
ScreenedTasks place_screened_backward(const AttentionShape& s, int views, const SurvivorIndexLayout& index,
                                      const PackedDocuments* documents, Arena& arena, Problem& problem) {
  ScreenedTasks tasks;
  std::uint32_t* const counters = arena.take<std::uint32_t>(kScreenedCounters);
  problem.position_scale = arena.take<double>(longest_key(s, documents));
  const std::int64_t row_tasks = views * s.query_heads * index.row_tiles;
  const std::int64_t key_tiles = documents ? s.key_length / kSliceRows + documents->count
                                           : s.batch * ((s.key_length + kSliceRows - 1) / kSliceRows);
  tasks.rows = {arena.take<std::uint32_t>(row_tasks), counters, counters + 1, 1};
  tasks.divided_rows = {arena.take<std::uint32_t>(row_tasks), counters + 2, counters + 3, kStripsOfTile};
  tasks.values = {arena.take<std::uint32_t>(s.key_heads * key_tiles), counters + 4, counters + 5, 1};
  tasks.keys = {tasks.values.tasks, counters + 4, counters + 6, views};
  tasks.divided_columns = {arena.take<std::uint32_t>(s.key_heads * key_tiles), counters + 7, counters + 8,
                           kStripsOfTile};
  return tasks;
}

bool readable_by_four(const ConstTensor& t, DataType type) {
  const std::size_t element = type == DataType::kFloat32 ? 4 : 2;
  return reinterpret_cast<std::uintptr_t>(t.data) % (4 * element) == 0 && t.batch_stride % 4 == 0 &&
         t.head_stride % 4 == 0 && t.row_stride % 4 == 0;
}

bool readable_by_sixteen_bytes(const ConstTensor& t, DataType type, std::int64_t dim) {
  return type != DataType::kFloat32 && reinterpret_cast<std::uintptr_t>(t.data) % 16 == 0 && t.batch_stride % 8 == 0 &&
         t.head_stride % 8 == 0 && t.row_stride % 8 == 0 && dim % 8 == 0;
}

bool writable_by_sixteen_bytes(const Tensor& t, DataType type, std::int64_t dim) {
  return readable_by_sixteen_bytes({t.data, t.batch_stride, t.head_stride, t.row_stride}, type, dim);
}

bool writable_by_pairs(const Tensor& t) {
  return reinterpret_cast<std::uintptr_t>(t.data) % 4 == 0 && t.batch_stride % 2 == 0 && t.head_stride % 2 == 0 &&
         t.row_stride % 2 == 0;
}

Problem make_problem(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                     const PackedDocuments* documents) {
  Problem p{};
  p.shape = shape;
  p.inputs = inputs;
  p.type = options.data_type;
  p.views = options.views;
  p.power = static_cast<float>(options.power);
  p.normalize = options.normalize;
  p.kappa = options.kappa;
  p.sequences = documents ? documents->count : shape.batch;
  p.longest_query = documents ? documents->longest_query : shape.query_length;
  p.longest_key = documents ? documents->longest_key : shape.key_length;
  if (documents) {
    p.query_offsets = documents->query_offsets;
    p.key_offsets = documents->key_offsets;
  }
  p.index = survivor_index_layout(shape, documents);
  for (int view = 0; view < options.views; ++view) {
    p.vector_q[view] = readable_by_four(inputs.q[view], p.type);
    p.vector_k[view] = readable_by_four(inputs.k[view], p.type);
    p.wide_q[view] = readable_by_sixteen_bytes(inputs.q[view], p.type, shape.head_dim);
    p.wide_k[view] = readable_by_sixteen_bytes(inputs.k[view], p.type, shape.head_dim);
  }
  p.vector_v = readable_by_four(inputs.v, p.type);
  p.wide_v = readable_by_sixteen_bytes(inputs.v, p.type, shape.value_dim);
  return p;
}

bool has_half_kernels(const AttentionShape& shape, DataType type) {
  return type != DataType::kFloat32 && shape.value_dim <= 128;
}

Status launch_status(const char* kernel, cudaError_t error) {
  if (error == cudaSuccess) return {};
  return {std::string("CUDA kernel ") + kernel + ": " + cudaGetErrorString(error)};
}

cudaStream_t stream_of(CudaStream stream) { return static_cast<cudaStream_t>(stream); }

}  // namespace

std::size_t forward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                    const PackedDocuments* documents) {
  Arena arena(nullptr);
  place_scales(shape, options.views, true, arena, nullptr);
  place_flag(arena, nullptr);
  if (screens_fp32(shape, options, longest_key(shape, documents))) {
    Problem problem{};
    DenseTasks dense, divided;
    place_screen(shape, options.views, documents, arena, problem, dense, divided);
  }
  return arena.used();
}

std::size_t backward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                     const PackedDocuments* documents) {
  const SurvivorIndexLayout index = survivor_index_layout(shape, documents);
  Arena arena(nullptr);
  place_scales(shape, options.views, !has_half_kernels(shape, options.data_type), arena, nullptr);
  const bool screened = screens_fp32(shape, options, longest_key(shape, documents));
  place_parts(shape, options.views, index, screened, arena, nullptr);
  if (has_half_kernels(shape, options.data_type)) {
    const bool lists = has_survivor_lists(shape, options, documents);
    place_plan(shape, options.views, index, documents, lists, may_fuse(shape, options, documents), arena, nullptr);
  }
  if (screened) {
    Problem problem{};
    place_screened_backward(shape, options.views, index, documents, arena, problem);
  }
  return arena.used();
}

Status forward(const ForwardCall& call) {
  Problem p = make_problem(call.shape, call.options, call.inputs, call.documents);
  Arena arena(call.workspace);
  place_scales(call.shape, call.options.views, true, arena, &p);
  place_flag(arena, &p);
  DenseTasks dense, divided;
  if (screens_fp32(p.shape, call.options, p.longest_key) && screens_fp32_now(p)) {
    place_screen(p.shape, p.views, call.documents, arena, p, dense, divided);
  }
  const cudaStream_t stream = stream_of(call.stream);
  if (has_half_kernels(p.shape, p.type)) {
    const cudaError_t error = cudaMemsetAsync(p.irregular, 0, sizeof(*p.irregular), stream);
    if (Status s = launch_status("memset", error); !s.ok()) return s;
  } else {
    p.irregular = nullptr;
  }
  const SurvivorLists lists = survivor_lists(call.outputs.survivor_index, call.shape, call.options, call.documents);
  const SavedFactors factors = saved_factors(call.outputs.survivor_index, call.shape, call.options, call.documents);
  if (std::uint32_t* const marks = factors.state ? factors.state : lists.totals) {
    // These kernels write neither: all bits set are more than kIncompleteHead, and not kFactorsSaved.
    const std::int64_t words = (factors.state ? kListWords : 0) + (lists.totals ? total_words(call.shape, p.views) : 0);
    const std::size_t bytes = static_cast<std::size_t>(words) * sizeof(std::uint32_t);
    if (Status s = launch_status("memset", cudaMemsetAsync(marks, 0xff, bytes, stream)); !s.ok()) return s;
  }
  if (Status s = launch_status("row_scales", launch_row_scales(p, stream)); !s.ok()) return s;
  if (p.irregular) {
    const bool pairs = writable_by_pairs(call.outputs.output);
    const cudaError_t error = launch_forward_half(p, call.outputs, pairs, stream);
    if (Status s = launch_status("forward_half", error); !s.ok()) return s;
  }
  if (dense.tasks) {
    cudaError_t error = launch_forward_fp32_screened(p, call.outputs, divided, dense, stream);
    if (Status s = launch_status("forward_fp32_screened", error); !s.ok()) return s;
    error = launch_forward_fp32_divided(p, call.outputs, divided, stream);
    if (Status s = launch_status("forward_fp32_divided", error); !s.ok()) return s;
  }
  return launch_status("forward_fp32", launch_forward_fp32(p, call.outputs, dense, stream));
}

namespace {

BackwardArguments make_arguments(const BackwardCall& call) {
  const DataType type = call.options.data_type;
  BackwardArguments a{};
  a.d_output = call.d_output;
  a.index = static_cast<const std::uint32_t*>(call.survivor_index);
  a.outputs = call.outputs;
  for (int view = 0; view < call.options.views; ++view) {
    a.pairs_dq[view] = writable_by_pairs(call.outputs.dq[view]);
    a.pairs_dk[view] = writable_by_pairs(call.outputs.dk[view]);
    a.wide_dq[view] = writable_by_sixteen_bytes(call.outputs.dq[view], type, call.shape.head_dim);
    a.wide_dk[view] = writable_by_sixteen_bytes(call.outputs.dk[view], type, call.shape.head_dim);
  }
  a.pairs_dv = writable_by_pairs(call.outputs.dv);
  a.wide_dv = writable_by_sixteen_bytes(call.outputs.dv, type, call.shape.value_dim);
  return a;
}

// Whether the rows of all operands and gradients may be read and written sixteen bytes at a time, and their
// strides fit 32 bits, as the pair kernels want.
bool rows_are_wide(const Problem& p, const BackwardArguments& a) {
  const auto is_near = [](const auto& t) {
    return t.row_stride >= 0 && t.row_stride <= std::numeric_limits<std::int32_t>::max();
  };
  bool wide = p.wide_v && p.wide_d_output && a.wide_dv;
  wide = wide && is_near(p.inputs.v) && is_near(a.d_output) && is_near(a.outputs.dv);
  for (int view = 0; view < p.views; ++view) {
    wide = wide && p.wide_q[view] && p.wide_k[view] && a.wide_dq[view] && a.wide_dk[view];
    wide = wide && is_near(p.inputs.q[view]) && is_near(p.inputs.k[view]);
    wide = wide && is_near(a.outputs.dq[view]) && is_near(a.outputs.dk[view]);
  }
  return wide;
}

// All gradients of the listed heads.
Status run_pair_kernels(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan, cudaStream_t stream) {
  cudaError_t error = launch_backward_pair_runs(p, plan, stream);
  if (Status s = launch_status("backward_pair_runs", error); !s.ok()) return s;
  const bool keys_wanted = a.outputs.dk[0].data || a.outputs.dk[1].data || a.outputs.dv.data;
  error = launch_backward_pair_rows(p, a, plan, keys_wanted, stream);
  if (Status s = launch_status("backward_pair_rows", error); !s.ok() || !keys_wanted) return s;
  error = launch_backward_pair_keys(p, a, plan, stream);
  if (Status s = launch_status("backward_pair_keys", error); !s.ok()) return s;
  return launch_status("backward_pair_long_keys", launch_backward_pair_long_keys(p, a, plan, stream));
}

// The fused kernel writes all of them.
bool wants_all_gradients(const BackwardCall& call) {
  bool all = call.outputs.dv.data != nullptr;
  for (int view = 0; view < call.options.views; ++view) {
    all = all && call.outputs.dq[view].data != nullptr && call.outputs.dk[view].data != nullptr;
  }
  return all;
}

Status run_half_kernels(const Problem& p, const BackwardArguments& a, const BackwardPlan& plan, DenseBackward dense,
                        cudaStream_t stream) {
  if (Status s = launch_status("backward_plan", launch_backward_plan(p, a, plan, stream)); !s.ok()) return s;
  if (plan.pairs.totals) {
    if (Status s = run_pair_kernels(p, a, plan, stream); !s.ok()) return s;
  }
  if (dense) {
    if (Status s = dense(p, a, plan, stream); !s.ok()) return s;
  }
  if (p.longest_query > 0) {
    const cudaError_t error = launch_backward_query_half(p, a, plan, stream);
    if (Status s = launch_status("backward_query_half", error); !s.ok()) return s;
  }
  return launch_status("backward_key_value_half", launch_backward_key_value_half(p, a, plan, stream));
}

Status run_fp32_kernels(const Problem& p, const BackwardArguments& a, const ScreenedTasks& dense, cudaStream_t stream) {
  if (Status s = launch_status("row_scales", launch_row_scales(p, stream)); !s.ok()) return s;
  if (dense.rows.tasks) {
    cudaError_t error = launch_backward_fp32_screened(p, a, dense, stream);
    if (Status s = launch_status("backward_fp32_screened", error); !s.ok()) return s;
    error = launch_backward_fp32_divided(p, a, dense, stream);
    if (Status s = launch_status("backward_fp32_divided", error); !s.ok()) return s;
  }
  const bool parameters = a.dbeta_parts || a.dlambda_parts;
  if (p.longest_query > 0 && (parameters || a.outputs.dq[0].data || a.outputs.dq[1].data)) {
    const cudaError_t error = launch_backward_query_fp32(p, a, dense.rows, stream);
    if (Status s = launch_status("backward_query_fp32", error); !s.ok()) return s;
  }
  if (a.outputs.dk[0].data || a.outputs.dk[1].data) {
    const cudaError_t error = launch_backward_key_fp32(p, a, dense.keys, stream);
    if (Status s = launch_status("backward_key_fp32", error); !s.ok()) return s;
  }
  if (!a.outputs.dv.data) return {};
  return launch_status("backward_value_fp32", launch_backward_value_fp32(p, a, dense.values, stream));
}

}  // namespace

Status backward(const BackwardCall& call, DenseBackward dense) {
  Problem p = make_problem(call.shape, call.options, call.inputs, call.documents);
  p.vector_d_output = readable_by_four(call.d_output, p.type);
  p.wide_d_output = readable_by_sixteen_bytes(call.d_output, p.type, call.shape.value_dim);
  BackwardArguments a = make_arguments(call);
  Arena arena(call.workspace);
  const bool half = has_half_kernels(p.shape, p.type);
  place_scales(call.shape, call.options.views, !half, arena, &p);
  const std::size_t parts = arena.used();
  const bool may_screen = screens_fp32(p.shape, call.options, p.longest_key);
  place_parts(call.shape, call.options.views, p.index, may_screen, arena, &a);
  std::size_t cleared = arena.used();
  BackwardPlan plan{};
  if (half) {
    const bool lists = has_survivor_lists(call.shape, call.options, call.documents);
    const bool fused = may_fuse(call.shape, call.options, call.documents);
    cleared = place_plan(call.shape, call.options.views, p.index, call.documents, lists, fused, arena, &plan);
    plan.dense = dense != nullptr;
    if (!plan.dense || !wants_all_gradients(call)) plan.fused = {};
    plan.saved = saved_factors(const_cast<void*>(call.survivor_index), call.shape, call.options, call.documents);
    if (lists && p.longest_query > 0 && rows_are_wide(p, a)) {
      const SurvivorLists from =
          survivor_lists(const_cast<void*>(call.survivor_index), call.shape, call.options, call.documents);
      plan.pairs.totals = from.totals;
      plan.pairs.lists = from.rows;
    }
  }
  ScreenedTasks screened;
  if (may_screen && p.vector_d_output && screens_fp32_now(p)) {
    screened = place_screened_backward(p.shape, p.views, p.index, call.documents, arena, p);
    cleared = static_cast<std::size_t>(reinterpret_cast<char*>(screened.rows.listed + kScreenedCounters) -
                                       static_cast<char*>(call.workspace));
  }
  const cudaStream_t stream = stream_of(call.stream);
  // The plan's counters start at 0, and so do the shares of row tiles without a task.
  const cudaError_t error = cudaMemsetAsync(static_cast<char*>(call.workspace) + parts, 0, cleared - parts, stream);
  if (Status s = launch_status("memset", error); !s.ok()) return s;
  const Status done = half ? run_half_kernels(p, a, plan, dense, stream) : run_fp32_kernels(p, a, screened, stream);
  if (!done.ok()) return done;
  if (!a.dbeta_parts && !a.dlambda_parts) return {};
  return launch_status("backward_parameters", launch_backward_parameters(p, a, stream));
}

}  // namespace tda::cuda::portable
