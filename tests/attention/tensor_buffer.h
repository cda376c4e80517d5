// A (batch, heads, length, dim) tensor of any data type and storage layout, for tests of the operator.
#pragma once

#include <array>
#include <cstdint>
#include <random>
#include <vector>

#include "tda/attention.h"

namespace tda::test {

enum class Layout {
  kContiguous,      // (B, H, T, D)
  kTransposed,      // stored as (B, T, H, D)
  kPaddedRows,      // odd row stride, odd offset of the first element
  kBroadcastBatch,  // batch stride 0 (inputs only)
  kBroadcastHeads,  // head stride 0 (inputs only)
  kReversedRows,    // negative row stride
};

class TensorBuffer {
 public:
  // Every element starts as NaN, the gaps of the layout too.
  TensorBuffer(DataType type, std::array<std::int64_t, 4> sizes, Layout layout);

  DataType type() const { return type_; }
  const std::array<std::int64_t, 4>& sizes() const { return sizes_; }
  std::int64_t numel() const { return sizes_[0] * sizes_[1] * sizes_[2] * sizes_[3]; }

  double get(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) const;
  void set(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c, double value);  // rounds to the type

  ConstTensor view() const;
  Tensor mutable_view();

  // All elements in (b, h, t, c) order.
  std::vector<double> values() const;
  void fill_normal(std::mt19937_64& random, double scale);
  // True when no element outside the tensor was written since construction.
  bool gaps_untouched() const;

 private:
  std::int64_t index(std::int64_t b, std::int64_t h, std::int64_t t, std::int64_t c) const;

  DataType type_;
  std::array<std::int64_t, 4> sizes_;
  std::array<std::int64_t, 3> strides_{};
  std::int64_t offset_ = 0;
  std::vector<std::uint64_t> storage_;  // 8-byte words, so that every data type is aligned
  std::int64_t storage_elements_ = 0;
};

}  // namespace tda::test
