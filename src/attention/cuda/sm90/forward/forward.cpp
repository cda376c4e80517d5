// The sm90 forward behind the kernel family: what it supports, its workspace, and its arguments from a call.
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string_view>

#include "attention/cuda/common/kernel_family.h"
#include "attention/cuda/common/tensor_map.h"
#include "attention/cuda/sm90/forward/launch.h"
#include "attention/cuda/sm90/forward/screen/rule.h"

namespace tda::cuda::sm90 {

namespace {

constexpr std::int64_t kWorkspaceAlignment = 256;
constexpr std::int64_t kLargestInt = std::numeric_limits<std::int32_t>::max();
constexpr int kMostScalings = 4;                      // jobs that may read a key, each of which computes its 1/|k|
constexpr std::int64_t kCacheBytesOfKeys = 16 << 20;  // 8-bit keys of the heads that are screened together

std::int64_t ceil_div(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }

// Below, what the lists cost the screen is more than they save (docs/experiments).
bool has_candidate_lists(const AttentionShape& shape, const PackedDocuments* documents) {
  return documents == nullptr && shape.key_length >= kListedKeys;
}

// Scratch memory as offsets from the workspace; also the derived sizes.
struct Workspace {
  std::int64_t key_tiles, row_tiles, row_blocks, key_rows, scale_pitch, flag_words;
  std::int64_t counters, row_slots, key_slots, block_list;  // up to block_list one fill clears
  std::int64_t keys8, key_scale, key_tile, flags, sparse_list, dense_list;
  std::int64_t strip_keys, listed_list, bytes;
};

// Of one batch element, or of all packed documents: then upper bounds that need no offset (DocumentSlot).
void set_row_counts(const AttentionShape& shape, const PackedDocuments* documents, Workspace& w) {
  if (documents == nullptr) {
    w.key_tiles = ceil_div(shape.key_length, kScreenKeys);
    w.row_tiles = ceil_div(shape.query_length, kRowTile);
    w.row_blocks = ceil_div(shape.query_length, kScreenRows);
    w.key_rows = w.key_tiles * kScreenKeys;
    w.scale_pitch = w.key_rows;
    w.flag_words = ceil_div(shape.key_length, kBlockKeys * kBlocksPerWord);
    return;
  }
  w.key_tiles = shape.key_length / kScreenKeys + documents->count;
  w.row_blocks = shape.query_length / kScreenRows + documents->count;
  w.key_rows = shape.key_length;
  // The last block of keys is read whole.
  w.scale_pitch =
      ceil_div(shape.key_length + kScaleAlignment * documents->count + kBlockKeys, kScaleAlignment) * kScaleAlignment;
  w.flag_words = ceil_div(documents->longest_key, kBlockKeys * kBlocksPerWord);
}

Workspace plan_workspace(const AttentionShape& shape, const AttentionOptions& options,
                         const PackedDocuments* documents) {
  Workspace w{};
  set_row_counts(shape, documents, w);
  const std::int64_t key_heads_of_all = options.views * shape.batch * shape.key_heads;
  const std::int64_t key_tiles_of_all = key_heads_of_all * w.key_tiles;
  const std::int64_t query_heads_of_all = shape.batch * shape.query_heads;
  std::int64_t end = 0;
  const auto take = [&](std::int64_t bytes) {
    const std::int64_t begin = end;
    end = ceil_div(end + bytes, kWorkspaceAlignment) * kWorkspaceAlignment;
    return begin;
  };
  w.counters = take(sizeof(Counters));
  if (documents != nullptr) {
    w.row_slots = take(w.row_blocks * static_cast<std::int64_t>(sizeof(DocumentSlot)));
    w.key_slots = take(w.key_tiles * static_cast<std::int64_t>(sizeof(DocumentSlot)));
    w.block_list = take(kBlockBuckets * w.row_blocks * 4);
  }
  w.keys8 = take(key_heads_of_all * w.key_rows * shape.head_dim);
  w.key_scale = take(key_heads_of_all * w.scale_pitch * static_cast<std::int64_t>(sizeof(float)));
  w.key_tile = take(key_tiles_of_all * static_cast<std::int64_t>(sizeof(KeyTile)));
  w.flags = take(options.views * query_heads_of_all * w.row_blocks * kStripsPerBlock * w.flag_words * 4);
  w.sparse_list = take(kBuckets * query_heads_of_all * w.row_blocks * kTilesPerBlock * 4);
  w.dense_list = take(query_heads_of_all * w.row_blocks * 4);
  const std::int64_t strips = query_heads_of_all * w.row_blocks * kStripsPerBlock;
  if (has_candidate_lists(shape, documents)) {
    w.strip_keys = take(options.views * strips * kStripKeys * (has_narrow_lists(shape.key_length) ? 2 : 4));
    w.listed_list = take(kListBuckets * strips * static_cast<std::int64_t>(sizeof(ListedJob)));
  }
  w.bytes = end;
  return w;
}

// Whether there are kernels for shapes like these, and their sizes stay within what those kernels count in 32 bits.
bool is_supported_shape(const AttentionShape& shape, const AttentionOptions& options,
                        const PackedDocuments* documents) {
  const bool type = options.data_type == DataType::kBFloat16 || options.data_type == DataType::kFloat16;
  // Without normalization fp16 weights have no bound that a row knows of.
  const bool bounded = options.normalize || options.data_type == DataType::kBFloat16;
  if (!type || !bounded || (shape.head_dim != 64 && shape.head_dim != 128) || shape.value_dim != shape.head_dim ||
      shape.batch <= 0 || shape.query_length <= 0) {
    return false;
  }
  const Workspace w = plan_workspace(shape, options, documents);
  const std::int64_t strips = options.views * shape.batch * shape.query_heads * w.row_blocks * kStripsPerBlock;
  return w.scale_pitch <= kLargestInt && shape.key_length <= kLargestInt / 2 && strips <= kLargestInt &&
         options.views * shape.batch * shape.key_heads * w.key_tiles <= kLargestInt / 2;
}

// Testing aid, read at each call: TDA_SM90_SCREEN=off computes every visible pair exactly; TDA_SM90_DENSE=off keeps the
// dense kernel out, TDA_SM90_LISTED=off lists of candidate keys; the outputs are the same bits. TDA_SM90_LISTS=off
// marks the survivors' lists as incomplete, so that the backward does without; TDA_SM90_FACTORS=off saves no factors
// 1/|x|, so that the backward computes them.
bool is_switched_off(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && std::string_view(value) == "off";
}

// Keys that the average row sees. Of documents the host knows the mean length alone: right where they are equal, never
// more than in the longest, and too few where most rows are in a few long ones. The rule that asks (screen/rule.h)
// then leaves a head unscreened somewhat sooner.
int mean_keys(const AttentionShape& shape, const PackedDocuments* documents) {
  const std::int64_t sequences = documents ? documents->count : 1;
  const std::int64_t queries = ceil_div(shape.query_length, sequences), keys = ceil_div(shape.key_length, sequences);
  return static_cast<int>(keys - queries + (queries + 1) / 2);
}

void set_sizes(const ForwardCall& call, const Workspace& w, ForwardArguments& a) {
  const AttentionShape& shape = call.shape;
  a.batch = static_cast<int>(shape.batch);
  a.query_heads = static_cast<int>(shape.query_heads);
  a.key_heads = static_cast<int>(shape.key_heads);
  a.heads_per_key = static_cast<int>(shape.query_heads / shape.key_heads);
  a.query_length = static_cast<int>(shape.query_length);
  a.key_length = static_cast<int>(shape.key_length);
  a.position_offset = a.key_length - a.query_length;
  a.views = call.options.views;
  a.row_blocks = static_cast<int>(w.row_blocks);
  a.row_tiles = static_cast<int>(w.row_tiles);
  a.key_tiles = static_cast<int>(w.key_tiles);
  a.key_rows = static_cast<int>(w.key_rows);
  a.scale_pitch = static_cast<int>(w.scale_pitch);
  a.mean_keys = mean_keys(shape, call.documents);
  a.flag_words = static_cast<int>(w.flag_words);
  const std::int64_t keys_of_head = w.key_tiles * kScreenKeys * shape.head_dim * a.views;
  a.heads_per_wave = static_cast<int>(
      std::clamp<std::int64_t>(kCacheBytesOfKeys / keys_of_head, std::int64_t{2}, kLargestInt / w.row_blocks));
  a.kappa = static_cast<float>(call.options.kappa);
  a.power = static_cast<float>(call.options.power);
  a.largest_t = static_cast<float>(std::exp2(15.0 / call.options.power));
  a.normalize = call.options.normalize;
  const bool automatic = call.choice.screening == Screening::kAutomatic;
  const bool too_short = call.documents == nullptr && is_too_short_to_screen(shape);
  a.screening =
      call.choice.screening != Screening::kNever && !(automatic && too_short) && !is_switched_off("TDA_SM90_SCREEN");
  a.choose_heads = a.screening && automatic;
  a.dense_kernel = !is_switched_off("TDA_SM90_DENSE");
  a.all_dense = !a.screening && a.dense_kernel && call.documents == nullptr;
  // Where few jobs read a key, it is not worth a kernel of its own; with an index it has 1/|k| to save.
  a.dense_scales = a.all_dense && dense_may_scale(shape.head_dim, a.views) && call.outputs.survivor_index == nullptr &&
                   a.row_blocks * a.heads_per_key <= kMostScalings;
  a.listing = a.screening && has_candidate_lists(shape, call.documents) && !is_switched_off("TDA_SM90_LISTED");
}

void set_memory(const ForwardCall& call, const Workspace& w, ForwardArguments& a) {
  for (int view = 0; view < a.views; ++view) {
    a.q[view] = call.inputs.q[view];
    a.k[view] = call.inputs.k[view];
  }
  a.v = call.inputs.v;
  a.beta = static_cast<const float*>(call.inputs.beta);
  a.lambda = static_cast<const float*>(call.inputs.lambda);
  a.output = call.outputs.output.data;
  a.output_batch_stride = call.outputs.output.batch_stride;
  a.output_head_stride = call.outputs.output.head_stride;
  a.output_row_stride = call.outputs.output.row_stride;
  a.survivors = call.outputs.survivors;
  a.index = static_cast<std::uint32_t*>(call.outputs.survivor_index);
  a.index_layout = survivor_index_layout(call.shape, call.documents);
  a.lists = survivor_lists(call.outputs.survivor_index, call.shape, call.options, call.documents);
  a.lists_wanted = !is_switched_off("TDA_SM90_LISTS");
  a.factors = saved_factors(call.outputs.survivor_index, call.shape, call.options, call.documents);
  if (is_switched_off("TDA_SM90_FACTORS")) a.factors.query = a.factors.key = nullptr;
  a.list_heads = a.lists.totals ? a.views * a.batch * a.query_heads : 0;
  auto* base = static_cast<std::uint8_t*>(call.workspace);
  a.counters = reinterpret_cast<Counters*>(base + w.counters);
  a.screening_counters = call.choice.screening_counters;
  if (call.documents != nullptr) {
    a.query_offsets = call.documents->query_offsets;
    a.key_offsets = call.documents->key_offsets;
    a.documents = static_cast<int>(call.documents->count);
    a.longest_key = static_cast<int>(call.documents->longest_key);
    a.row_slots = reinterpret_cast<DocumentSlot*>(base + w.row_slots);
    a.key_slots = reinterpret_cast<DocumentSlot*>(base + w.key_slots);
    a.block_list = reinterpret_cast<int*>(base + w.block_list);
  }
  a.keys8 = reinterpret_cast<std::int8_t*>(base + w.keys8);
  a.key_scale = reinterpret_cast<float*>(base + w.key_scale);
  a.key_tile = reinterpret_cast<KeyTile*>(base + w.key_tile);
  a.flags = reinterpret_cast<std::uint32_t*>(base + w.flags);
  a.sparse_list = reinterpret_cast<int*>(base + w.sparse_list);
  a.dense_list = reinterpret_cast<int*>(base + w.dense_list);
  a.strip_keys = base + w.strip_keys;
  a.listed_list = reinterpret_cast<ListedJob*>(base + w.listed_list);
}

TileSource output_source(const ForwardCall& call) {
  const Tensor& output = call.outputs.output;
  const ConstTensor view{output.data, output.batch_stride, output.head_stride, output.row_stride};
  return tile_source(view, call.shape, call.shape.query_length, call.shape.query_heads);
}

Status set_tensor_maps(const ForwardCall& call, ForwardArguments& a) {
  const AttentionShape& shape = call.shape;
  const char* const query_names[2] = {"q[0]", "q[1]"};
  const char* const key_names[2] = {"k[0]", "k[1]"};
  for (int view = 0; view < a.views; ++view) {
    Status status = make_tensor_map(tile_source(call.inputs.q[view], shape, shape.query_length, shape.query_heads),
                                    query_names[view], a.query[view]);
    if (!status.ok()) return status;
    status = make_tensor_map(tile_source(call.inputs.k[view], shape, shape.key_length, shape.key_heads),
                             key_names[view], a.key[view]);
    if (!status.ok()) return status;
  }
  Status status = make_tensor_map(tile_source(call.inputs.v, shape, shape.key_length, shape.key_heads), "v", a.value);
  if (!status.ok()) return status;
  const TileSource keys8{.data = a.keys8,
                         .element_bytes = 1,
                         .elements = shape.head_dim,
                         .rows = a.key_rows,
                         .heads = a.views * shape.batch * shape.key_heads,
                         .batch = 1,
                         .row_stride = shape.head_dim,
                         .head_stride = a.key_rows * shape.head_dim,
                         .batch_stride = 0,
                         .box_elements = static_cast<int>(shape.head_dim),
                         .box_rows = kScreenKeys};
  status = make_tensor_map(keys8, "workspace", a.key8);
  if (!status.ok()) return status;
  TileSource zeroed_output = output_source(call);
  zeroed_output.box_rows = kZeroRows;
  return make_tensor_map(zeroed_output, "output", a.zeroed_output);
}

template <typename Element, int kHeadDim>
Status launch(const ForwardArguments& a, bool packed, int processors, cudaStream_t stream) {
  return packed ? launch_forward<Element, kHeadDim, true>(a, processors, stream)
                : launch_forward<Element, kHeadDim, false>(a, processors, stream);
}

}  // namespace

bool forward_supports(const ForwardCall& call, int compute_capability) {
  const AttentionShape& shape = call.shape;
  if (compute_capability != 90 || !is_supported_shape(shape, call.options, call.documents)) return false;
  for (int view = 0; view < call.options.views; ++view) {
    if (!tile_source_is_aligned(tile_source(call.inputs.q[view], shape, shape.query_length, shape.query_heads)) ||
        !tile_source_is_aligned(tile_source(call.inputs.k[view], shape, shape.key_length, shape.key_heads))) {
      return false;
    }
  }
  if (has_candidate_lists(shape, call.documents)) {
    // The listed product steps from row to row by an int of bytes.
    for (const ConstTensor* keys : {&call.inputs.k[0], &call.inputs.k[call.options.views - 1], &call.inputs.v}) {
      if (keys->row_stride > kLargestInt / 2) return false;
    }
  }
  return tile_source_is_aligned(tile_source(call.inputs.v, shape, shape.key_length, shape.key_heads)) &&
         tile_source_is_aligned(output_source(call));
}

std::size_t forward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                    const PackedDocuments* documents) {
  if (!is_supported_shape(shape, options, documents)) return 0;
  return static_cast<std::size_t>(plan_workspace(shape, options, documents).bytes);
}

Status forward(const ForwardCall& call) {
  const Workspace w = plan_workspace(call.shape, call.options, call.documents);
  ForwardArguments arguments{};
  set_sizes(call, w, arguments);
  set_memory(call, w, arguments);
  Status status = set_tensor_maps(call, arguments);
  if (!status.ok()) return status;
  int device = 0;
  int processors = 0;
  cudaError_t error = cudaGetDevice(&device);
  if (error == cudaSuccess) error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, device);
  if (error != cudaSuccess)
    return {std::string("attention_cuda_forward: device query failed: ") + cudaGetErrorString(error)};
  auto* stream = static_cast<cudaStream_t>(call.stream);
  const bool is_bfloat16 = call.options.data_type == DataType::kBFloat16;
  const bool packed = call.documents != nullptr;
  if (call.shape.head_dim == 64) {
    return is_bfloat16 ? launch<__nv_bfloat16, 64>(arguments, packed, processors, stream)
                       : launch<__half, 64>(arguments, packed, processors, stream);
  }
  return is_bfloat16 ? launch<__nv_bfloat16, 128>(arguments, packed, processors, stream)
                     : launch<__half, 128>(arguments, packed, processors, stream);
}

}  // namespace tda::cuda::sm90
