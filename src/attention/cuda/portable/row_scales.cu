// The factor that turns a query or key into its unit vector, for every row: 1 / max(|x|, 1e-12); and for the fp32
// screen the unit vectors themselves, rounded to fp16.
//
// Eight lanes a row, so that little of a warp's time goes to what is done once a row: addresses, square root, division.
// Rows with a NaN or an Inf get NaN, which then reaches every score of the row.
#include <climits>

#include "attention/cuda/common/warp_matrix.cuh"
#include "attention/cuda/portable/device_problem.cuh"
#include "attention/cuda/portable/kernels.h"

namespace tda::cuda::portable {
namespace {

constexpr int kThreads = 256;
constexpr int kLanes = 8;  // of one row
constexpr int kRowsOfBlock = kThreads / kLanes;

__device__ double scale_of_row(DataType type, const void* data, std::int64_t start, int dim, bool vector,
                               bool normalize) {
  double sum = 0.0;
  bool finite = true;
  for (int d = static_cast<int>(threadIdx.x) % kLanes * 4; d < dim; d += 4 * kLanes) {
    const float4 x = load_four(type, data, start + d, dim - d, vector);
    for (const float element : {x.x, x.y, x.z, x.w}) {
      finite = finite && isfinite(element);
      sum = fma(static_cast<double>(element), static_cast<double>(element), sum);
    }
  }
  for (int step = kLanes / 2; step > 0; step /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, step);
    finite = __shfl_xor_sync(0xffffffffu, static_cast<int>(finite), step) != 0 && finite;
  }
  if (!finite) return CUDART_NAN;
  return normalize ? 1.0 / fmax(sqrt(sum), 1e-12) : 1.0;
}

// The unit vector of the row in fp16, from the fp32 elements that the exact scores multiply.
__device__ void write_half_row(const Problem& p, const ConstTensor& tensor, std::int64_t start, bool vector, float high,
                               float low, void* copy) {
  const int dim = static_cast<int>(p.shape.head_dim);
  for (int d = static_cast<int>(threadIdx.x) % kLanes * 4; d < p.half_pitch; d += 4 * kLanes) {
    const float4 x = load_four(p.type, tensor.data, start + d, dim - d, vector);
    const float4 unit = scaled(x, high, low);
    const uint2 rounded = make_uint2(rounded_pair<__half>(unit.x, unit.y), rounded_pair<__half>(unit.z, unit.w));
    *reinterpret_cast<uint2*>(static_cast<__half*>(copy) + d) = rounded;
  }
}

// Which row a thread helps with.
struct OwnRow {
  std::int64_t row;  // among the queries or keys of the view
  std::int64_t batch, head, position;
  int view;
  bool is_query;
};

// INDEX is 32 bits wide wherever the rows can be counted so: five divisions a thread took most of the kernel's time.
template <class INDEX>
__device__ OwnRow own_row(const Problem& p, INDEX query_rows, INDEX key_rows, INDEX row) {
  const auto all_queries = static_cast<INDEX>(p.shape.query_heads) * query_rows;
  const INDEX rows_of_view = all_queries + static_cast<INDEX>(p.shape.key_heads) * key_rows;
  const INDEX view = row >= rows_of_view ? 1 : 0;
  row -= view * rows_of_view;
  const bool is_query = row < all_queries;
  if (!is_query) row -= all_queries;
  const INDEX flat_rows = is_query ? query_rows : key_rows;
  const auto length = static_cast<INDEX>(is_query ? p.shape.query_length : p.shape.key_length);
  const INDEX head = row / flat_rows, flat = row - head * flat_rows, batch = flat / length;
  return {static_cast<std::int64_t>(row),  static_cast<std::int64_t>(batch),
          static_cast<std::int64_t>(head), static_cast<std::int64_t>(flat - batch * length),
          static_cast<int>(view),          is_query};
}

__global__ void __launch_bounds__(kThreads)
    row_scales_kernel(const __grid_constant__ Problem p, std::int64_t query_rows, std::int64_t key_rows) {
  const std::int64_t rows = (p.shape.query_heads * query_rows + p.shape.key_heads * key_rows) * p.views;
  // Every position has a key row, and so a thread.
  const std::int64_t thread = static_cast<std::int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (p.position_scale && thread < p.longest_key) p.position_scale[thread] = threshold_scale(p, thread);
  const std::int64_t own = static_cast<std::int64_t>(blockIdx.x) * kRowsOfBlock + threadIdx.x / kLanes;
  // Lanes beyond the end repeat the last row, so that whole warps shuffle.
  const std::int64_t index = own < rows ? own : rows - 1;
  const OwnRow at = rows <= INT_MAX ? own_row(p, static_cast<unsigned>(query_rows), static_cast<unsigned>(key_rows),
                                              static_cast<unsigned>(index))
                                    : own_row(p, query_rows, key_rows, index);
  const std::int64_t row = at.row;
  const int view = at.view;
  const bool is_query = at.is_query;
  const ConstTensor& tensor = is_query ? p.inputs.q[view] : p.inputs.k[view];
  const bool vector = is_query ? p.vector_q[view] : p.vector_k[view];
  const std::int64_t start = row_offset(tensor, at.batch, at.head, at.position);
  const double exact =
      scale_of_row(p.type, tensor.data, start, static_cast<int>(p.shape.head_dim), vector, p.normalize);
  const auto scale = static_cast<float>(exact);
  const auto rest = static_cast<float>(exact - static_cast<double>(scale));
  if (p.dense_counters && blockIdx.x == 0 && threadIdx.x < kDenseCounters) p.dense_counters[threadIdx.x] = 0;
  if (void* const copy = is_query ? p.half_query[view] : p.half_key[view]) {
    write_half_row(p, tensor, start, vector, scale, rest, static_cast<__half*>(copy) + row * p.half_pitch);
  }
  if (threadIdx.x % kLanes != 0) return;
  if (p.irregular && !is_regular(p, scale)) *p.irregular = 1;
  (is_query ? p.query_scale : p.key_scale)[view][row] = scale;
  float* const low = (is_query ? p.query_scale_low : p.key_scale_low)[view];
  if (low) low[row] = rest;
}

}  // namespace

cudaError_t launch_row_scales(const Problem& p, cudaStream_t stream) {
  const std::int64_t query_rows = p.shape.batch * p.shape.query_length, key_rows = p.shape.batch * p.shape.key_length;
  const std::int64_t rows = (p.shape.query_heads * query_rows + p.shape.key_heads * key_rows) * p.views;
  const auto blocks = static_cast<unsigned>((rows + kRowsOfBlock - 1) / kRowsOfBlock);
  row_scales_kernel<<<blocks, kThreads, 0, stream>>>(p, query_rows, key_rows);
  return cudaGetLastError();
}

}  // namespace tda::cuda::portable
