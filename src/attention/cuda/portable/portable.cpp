// The portable family: correct on every device from sm_80, for every case of the contract.
#include <algorithm>
#include <string>

#include "attention/cuda/common/kernel_family.h"
#include "attention/cuda/portable/kernels.h"
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

void place_scales(const AttentionShape& s, int views, Arena& arena, Problem* problem) {
  for (int view = 0; view < views; ++view) {
    float* const query_scale = arena.take<float>(s.query_heads * s.batch * s.query_length);
    float* const key_scale = arena.take<float>(s.key_heads * s.batch * s.key_length);
    if (!problem) continue;
    problem->query_scale[view] = query_scale;
    problem->key_scale[view] = key_scale;
  }
}

void place_parts(const AttentionShape& s, int views, const SurvivorIndexLayout& index, Arena& arena,
                 BackwardArguments* arguments) {
  double* const dbeta = arena.take<double>(views * s.query_heads * index.row_tiles);
  double* const dlambda = arena.take<double>(s.query_heads * index.row_tiles);
  if (!arguments) return;
  arguments->dbeta_parts = arguments->outputs.dbeta ? dbeta : nullptr;
  arguments->dlambda_parts = arguments->outputs.dlambda ? dlambda : nullptr;
}

void place_flag(Arena& arena, Problem* problem) {
  unsigned* const flag = arena.take<unsigned>(1);
  if (problem) problem->irregular = flag;
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

bool has_half_kernels(const Problem& p) { return p.type != DataType::kFloat32 && p.shape.value_dim <= 128; }

Status launch_status(const char* kernel, cudaError_t error) {
  if (error == cudaSuccess) return {};
  return {std::string("CUDA kernel ") + kernel + ": " + cudaGetErrorString(error)};
}

cudaStream_t stream_of(CudaStream stream) { return static_cast<cudaStream_t>(stream); }

}  // namespace

std::size_t forward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                    const PackedDocuments*) {
  Arena arena(nullptr);
  place_scales(shape, options.views, arena, nullptr);
  place_flag(arena, nullptr);
  return arena.used();
}

std::size_t backward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options,
                                     const PackedDocuments* documents) {
  Arena arena(nullptr);
  place_scales(shape, options.views, arena, nullptr);
  place_parts(shape, options.views, survivor_index_layout(shape, documents), arena, nullptr);
  place_flag(arena, nullptr);
  return arena.used();
}

Status forward(const ForwardCall& call) {
  Problem p = make_problem(call.shape, call.options, call.inputs, call.documents);
  Arena arena(call.workspace);
  place_scales(call.shape, call.options.views, arena, &p);
  place_flag(arena, &p);
  const cudaStream_t stream = stream_of(call.stream);
  if (has_half_kernels(p)) {
    const cudaError_t error = cudaMemsetAsync(p.irregular, 0, sizeof(*p.irregular), stream);
    if (Status s = launch_status("memset", error); !s.ok()) return s;
  } else {
    p.irregular = nullptr;
  }
  if (Status s = launch_status("row_scales", launch_row_scales(p, stream)); !s.ok()) return s;
  if (p.irregular) {
    const bool pairs = writable_by_pairs(call.outputs.output);
    const cudaError_t error = launch_forward_half(p, call.outputs, pairs, stream);
    if (Status s = launch_status("forward_half", error); !s.ok()) return s;
  }
  return launch_status("forward_fp32", launch_forward_fp32(p, call.outputs, stream));
}

namespace {

BackwardArguments make_arguments(const BackwardCall& call) {
  BackwardArguments a{};
  a.d_output = call.d_output;
  a.index = static_cast<const std::uint32_t*>(call.survivor_index);
  a.outputs = call.outputs;
  for (int view = 0; view < call.options.views; ++view) {
    a.pairs_dq[view] = writable_by_pairs(call.outputs.dq[view]);
    a.pairs_dk[view] = writable_by_pairs(call.outputs.dk[view]);
  }
  a.pairs_dv = writable_by_pairs(call.outputs.dv);
  return a;
}

struct Launch {
  const char* kernel;
  cudaError_t (*launch)(const Problem&, const BackwardArguments&, cudaStream_t);
  bool wanted;
};

}  // namespace

Status backward(const BackwardCall& call) {
  Problem p = make_problem(call.shape, call.options, call.inputs, call.documents);
  p.vector_d_output = readable_by_four(call.d_output, p.type);
  p.wide_d_output = readable_by_sixteen_bytes(call.d_output, p.type, call.shape.value_dim);
  BackwardArguments a = make_arguments(call);
  Arena arena(call.workspace);
  place_scales(call.shape, call.options.views, arena, &p);
  place_parts(call.shape, call.options.views, p.index, arena, &a);
  const std::size_t cleared = arena.used();
  place_flag(arena, &p);
  const bool half = has_half_kernels(p);
  if (!half) p.irregular = nullptr;
  const cudaStream_t stream = stream_of(call.stream);
  // The flag starts at 0; packed documents leave gaps between the shares of their row tiles that no block fills.
  char* const first = a.dbeta_parts     ? reinterpret_cast<char*>(a.dbeta_parts)
                      : a.dlambda_parts ? reinterpret_cast<char*>(a.dlambda_parts)
                                        : static_cast<char*>(call.workspace) + cleared;
  const auto bytes = static_cast<std::size_t>(static_cast<char*>(call.workspace) + arena.used() - first);
  if (Status s = launch_status("memset", cudaMemsetAsync(first, 0, bytes, stream)); !s.ok()) return s;
  if (Status s = launch_status("row_scales", launch_row_scales(p, stream)); !s.ok()) return s;

  const bool parameters = a.dbeta_parts || a.dlambda_parts;
  const bool queries = p.longest_query > 0 && (parameters || a.outputs.dq[0].data || a.outputs.dq[1].data);
  const bool keys = a.outputs.dk[0].data || a.outputs.dk[1].data, values = a.outputs.dv.data != nullptr;
  const Launch launches[] = {{"backward_query_half", launch_backward_query_half, half && queries},
                             {"backward_key_value_half", launch_backward_key_value_half, half && (keys || values)},
                             {"backward_query_fp32", launch_backward_query_fp32, queries},
                             {"backward_key_fp32", launch_backward_key_fp32, keys},
                             {"backward_value_fp32", launch_backward_value_fp32, values},
                             {"backward_parameters", launch_backward_parameters, parameters}};
  for (const Launch& l : launches) {
    if (!l.wanted) continue;
    if (Status s = launch_status(l.kernel, l.launch(p, a, stream)); !s.ok()) return s;
  }
  return {};
}

}  // namespace tda::cuda::portable
