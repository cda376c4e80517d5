// A map of rows without its kernel: the tensor operations that are the kernel's readable twin, on any device.
#pragma once

#include <utility>

#include "lm/model/mechanisms/row_attention.h"

namespace tda::test {

class TensorOperations final : public RowMap {
 public:
  explicit TensorOperations(RowMapPointer map) : map_(std::move(map)) {}

  double hidden_score() const override { return map_->hidden_score(); }
  at::Tensor statistics(const RowBlock& block) const override { return map_->statistics(block); }
  at::Tensor weights(const RowBlock& block, const at::Tensor& statistics) const override {
    return map_->weights(block, statistics);
  }
  at::Tensor score_gradient(const RowBlock& block, const at::Tensor& statistics, const at::Tensor& weights,
                            const at::Tensor& d_weights) const override {
    return map_->score_gradient(block, statistics, weights, d_weights);
  }

 private:
  RowMapPointer map_;
};

inline RowMapPointer tensor_operations(const RowMapPointer& map) { return c10::make_intrusive<TensorOperations>(map); }

}  // namespace tda::test
