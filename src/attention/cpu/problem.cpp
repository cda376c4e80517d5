#include "attention/cpu/problem.h"

#include <cstring>

namespace tda::cpu {
namespace {

constexpr float kLargePlain = 0x1p40f, kSmallPlain = 0x1p-40f;

bool is_plain(float inverse) { return inverse >= kSmallPlain && inverse <= kLargePlain; }

}  // namespace

bool all_plain(const float* inverse, std::int64_t count) {
  int others = 0;  // no early end: this way the compiler uses vectors
  for (std::int64_t i = 0; i < count; ++i) others |= inverse[i] >= kSmallPlain && inverse[i] <= kLargePlain ? 0 : 1;
  return others == 0;
}

void split_scale(const float* inverse, std::int64_t count, float* scale, float* scaled_inverse) {
  if (all_plain(inverse, count)) {
    std::fill_n(scale, count, 1.0f);
    std::copy_n(inverse, count, scaled_inverse);
    return;
  }
  for (std::int64_t i = 0; i < count; ++i) {
    scale[i] = 1.0f;
    scaled_inverse[i] = inverse[i];
    if (is_plain(inverse[i])) continue;
    scale[i] = std::isnan(inverse[i]) ? 0.0f : std::ldexp(1.0f, std::ilogb(inverse[i]));
    if (scale[i] != 0.0f) scaled_inverse[i] = inverse[i] / scale[i];
  }
}

void threshold_scales(const Problem& problem, std::int64_t first, std::int64_t count, double* scales) {
  const double dim = static_cast<double>(problem.shape.head_dim);
  for (std::int64_t i = 0; i < count; ++i) {
    const double position = static_cast<double>(problem.position_of(first + i));
    scales[i] = std::sqrt(2.0 * std::max(0.0, std::log((position + 1.0) / problem.options.kappa)) / dim);
  }
}

void split_thresholds(float beta, const double* scales, std::int64_t count, float* high, float* low) {
  for (std::int64_t i = 0; i < count; ++i) {
    const double tau = static_cast<double>(beta) * scales[i];
    high[i] = static_cast<float>(tau);
    low[i] = static_cast<float>(tau - static_cast<double>(high[i]));
  }
}

std::uint64_t lanes_seeing_key(std::int64_t first_position, int query_count, std::int64_t key) {
  const std::uint64_t exist = query_count >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << query_count) - 1;
  const std::int64_t first = key - first_position;  // lanes below it stand before the key
  if (first <= 0) return exist;
  return first >= 64 ? 0 : exist & (~std::uint64_t{0} << first);
}

std::uint64_t lanes_seen_by(std::int64_t position, std::int64_t first_key, int key_count) {
  const std::int64_t count = std::min<std::int64_t>(position - first_key + 1, key_count);
  if (count <= 0) return 0;
  return count >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << count) - 1;
}

void zero_rows(DataType type, void* data, std::int64_t row_stride, std::int64_t count, std::int64_t dim) {
  const std::int64_t bytes = type == DataType::kFloat32 ? 4 : 2;
  char* row = static_cast<char*>(data);
  if (row_stride == dim) {
    std::memset(row, 0, static_cast<std::size_t>(count * dim * bytes));
    return;
  }
  for (std::int64_t i = 0; i < count; ++i)
    std::memset(row + i * row_stride * bytes, 0, static_cast<std::size_t>(dim * bytes));
}

void transpose_lanes(const float* from, std::ptrdiff_t from_stride, int lanes, int dim, float* to) {
  // Eight columns at a time: each cache line of `from` is then read twice, not sixteen times.
  for (int first = 0; first < dim; first += 8) {
    const int last = std::min(first + 8, dim);
    for (int lane = 0; lane < lanes; ++lane) {
      for (int d = first; d < last; ++d) to[d * kBlock + lane] = from[lane * from_stride + d];
    }
  }
}

void* output_row(const Problem& problem, const Tensor& tensor, std::int64_t heads_per_batch, std::int64_t head,
                 std::int64_t row) {
  const std::int64_t offset = head / heads_per_batch * tensor.batch_stride +
                              head % heads_per_batch * tensor.head_stride + row * tensor.row_stride;
  const std::int64_t bytes = problem.options.data_type == DataType::kFloat32 ? 4 : 2;
  return static_cast<char*>(tensor.data) + offset * bytes;
}

}  // namespace tda::cpu
