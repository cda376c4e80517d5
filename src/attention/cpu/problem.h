// What forward and backward share: addressing, scratch memory, thresholds, norms, and the survivor index.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>

#include "attention/cpu/kernel_choice.h"
#include "attention/cpu/simd_kernels.h"
#include "tda/attention.h"

namespace tda::cpu {

inline std::int64_t divide_up(std::int64_t a, std::int64_t b) { return (a + b - 1) / b; }
inline std::int64_t round_up(std::int64_t a, std::int64_t b) { return divide_up(a, b) * b; }

// Hands out 64-byte aligned pieces of a buffer. With a null base it only measures.
class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<char*>(base)) {}
  template <typename T>
  T* take(std::int64_t count) {
    T* piece = base_ == nullptr ? nullptr : reinterpret_cast<T*>(base_ + used_);
    used_ += static_cast<std::size_t>(round_up(count * static_cast<std::int64_t>(sizeof(T)), 64));
    return piece;
  }
  std::size_t used() const { return used_; }

 private:
  char* base_;
  std::size_t used_ = 0;
};

// One bit per 64 queries x 16 keys, set if a pair inside has a non-zero weight: [view][batch * query head][query
// block][slice], slices in words of 64.
class SurvivorIndex {
 public:
  SurvivorIndex(const AttentionShape& shape, const AttentionOptions& options, void* words)
      : words_(static_cast<std::uint64_t*>(words)),
        heads_(shape.batch * shape.query_heads),
        blocks_(divide_up(shape.query_length, kBlock)),
        row_words_(divide_up(divide_up(shape.key_length, kSlice), 64)),
        views_(options.views) {}
  std::size_t bytes() const { return static_cast<std::size_t>(views_ * heads_ * blocks_ * row_words_) * 8; }
  std::int64_t row_words() const { return row_words_; }
  // The slices of one query block.
  std::uint64_t* row(int view, std::int64_t head, std::int64_t block) const {
    return words_ + ((view * heads_ + head) * blocks_ + block) * row_words_;
  }
  // The four bits of 64 keys.
  unsigned tile(int view, std::int64_t head, std::int64_t block, std::int64_t key_block) const {
    return static_cast<unsigned>(row(view, head, block)[key_block / 16] >> (key_block % 16 * 4)) & 0xF;
  }

 private:
  std::uint64_t* words_;
  std::int64_t heads_, blocks_, row_words_;
  std::int64_t views_;
};

// The call's arguments with addressing. `head` counts batch * query_heads, `key_head` batch * key_heads.
struct Problem {
  const AttentionShape& shape;
  const AttentionOptions& options;
  const AttentionInputs& inputs;
  const SimdKernels& simd;

  std::int64_t heads() const { return shape.batch * shape.query_heads; }
  std::int64_t key_heads() const { return shape.batch * shape.key_heads; }
  std::int64_t group() const { return shape.query_heads / shape.key_heads; }
  std::int64_t key_head_of(std::int64_t head) const {
    return head / shape.query_heads * shape.key_heads + head % shape.query_heads / group();
  }
  std::int64_t position_of(std::int64_t row) const { return shape.key_length - shape.query_length + row; }

  Rows rows(const ConstTensor& tensor, std::int64_t heads_per_batch, std::int64_t head, std::int64_t row) const {
    const std::int64_t offset = head / heads_per_batch * tensor.batch_stride +
                                head % heads_per_batch * tensor.head_stride + row * tensor.row_stride;
    const std::int64_t bytes = options.data_type == DataType::kFloat32 ? 4 : 2;
    return {options.data_type, static_cast<const char*>(tensor.data) + offset * bytes, tensor.row_stride};
  }
  Rows queries(int view, std::int64_t head, std::int64_t row) const {
    return rows(inputs.q[view], shape.query_heads, head, row);
  }
  Rows keys(int view, std::int64_t key_head, std::int64_t row) const {
    return rows(inputs.k[view], shape.key_heads, key_head, row);
  }
  Rows values(std::int64_t key_head, std::int64_t row) const { return rows(inputs.v, shape.key_heads, key_head, row); }
  float beta(std::int64_t head) const { return static_cast<const float*>(inputs.beta)[head % shape.query_heads]; }
  // The factor of a view: 1, or -clamp(lambda, 0, 1).
  float view_factor(int view, std::int64_t head) const {
    if (view == 0) return 1.0f;
    return -std::clamp(static_cast<const float*>(inputs.lambda)[head % shape.query_heads], 0.0f, 1.0f);
  }
};

// Rows whose squares or products could leave the range of fp32 are used times a power of two, and their inverse norm is
// divided by it; both steps are exact. NaN (a row with NaN or Inf) becomes a zero row with a NaN inverse, so that every
// score of the row is NaN but nothing else is.
bool all_plain(const float* inverse, std::int64_t count);
void split_scale(const float* inverse, std::int64_t count, float* scale, float* scaled_inverse);

// c_n for `count` rows from `first`: sqrt(2 max(0, ln((n + 1) / kappa)) / D), in double.
void threshold_scales(const Problem& problem, std::int64_t first, std::int64_t count, double* scales);

// tau = beta * scale for `count` rows, as high + low.
void split_thresholds(float beta, const double* scales, std::int64_t count, float* high, float* low);

// Lanes of 64 queries (from row `first_row`, `query_count` of them) that may see key `key`, and lanes of 64 keys that a
// query may see.
std::uint64_t lanes_seeing_key(std::int64_t first_position, int query_count, std::int64_t key);
std::uint64_t lanes_seen_by(std::int64_t position, std::int64_t first_key, int key_count);

// Zeroes `count` rows of an output.
void zero_rows(DataType type, void* data, std::int64_t row_stride, std::int64_t count, std::int64_t dim);

// to[d][lane] = from[lane][d]; `to` has a row stride of 64.
void transpose_lanes(const float* from, std::ptrdiff_t from_stride, int lanes, int dim, float* to);

// Element offset of (head, row) in an output, and its address.
void* output_row(const Problem& problem, const Tensor& tensor, std::int64_t heads_per_batch, std::int64_t head,
                 std::int64_t row);

}  // namespace tda::cpu
