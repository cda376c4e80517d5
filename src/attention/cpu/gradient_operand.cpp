#include "attention/cpu/gradient_operand.h"

#include <cstring>

namespace tda::cpu {

void BlockOperand::set(const BackwardPlan& plan, const SimdKernels& simd, const BlockForms& forms, Rows rows, int count,
                       int dim, const float* inverse, const float* low) {
  plan_ = &plan;
  simd_ = &simd;
  forms_ = forms;
  rows_ = rows;
  count_ = count;
  dim_ = dim;
  stride_ = static_cast<int>(round_up(dim, 16));
  depth32_ = static_cast<int>(divide_up(dim, 32));
  inverse_ = inverse;
  low_ = low;
  vectors_ = inverse != nullptr;
  fp32_ready_ = transposed_ready_ = bf16_ready_ = lanes_ready_ = row_pairs_ready_ = columns_ready_ = false;
  finite_known_ = false;
  plain_ = true;
  if (vectors_) {
    plain_ = all_plain(inverse, count);
    if (plan.engine != nullptr) {
      split_scale(inverse, count, power_, scale_);
    } else {
      for (int i = 0; i < count; ++i) scale_[i] = std::isnan(inverse[i]) ? inverse[i] : 1.0f;
    }
    std::fill(scale_ + count, scale_ + kBlock, 0.0f);
  }
  const bool usable_type = plan.engine != nullptr || rows.type == DataType::kFloat32;
  native_ = dim % 16 == 0 && usable_type && plain_ && (!vectors_ || plan.engine != nullptr);
}

Rows BlockOperand::fp32() {
  if (!vectors_ && rows_.type == DataType::kFloat32 && dim_ % 16 == 0) return rows_;
  if (!fp32_ready_) {
    fp32_ready_ = true;
    if (!vectors_) {
      simd_->load_rows(rows_, count_, dim_, nullptr, forms_.fp32, stride_);
    } else if (plan_->engine != nullptr) {
      simd_->load_rows(rows_, count_, dim_, power_, forms_.fp32, stride_);
    } else {
      simd_->unit_rows(rows_, count_, dim_, inverse_, low_, forms_.fp32, stride_);
    }
  }
  return {DataType::kFloat32, forms_.fp32, stride_};
}

const float* BlockOperand::transposed() {
  if (!transposed_ready_) {
    transposed_ready_ = true;
    const Rows rows = fp32();
    if (count_ < kBlock) std::memset(forms_.transposed, 0, static_cast<std::size_t>(dim_) * kBlock * sizeof(float));
    transpose_lanes(static_cast<const float*>(rows.data), rows.stride, count_, dim_, forms_.transposed);
  }
  return forms_.transposed;
}

const std::uint16_t* BlockOperand::engine_rows(std::ptrdiff_t& stride) {
  if (plain_ && count_ == kBlock && dim_ % 32 == 0 && rows_.stride % 2 == 0) {
    stride = rows_.stride;
    return static_cast<const std::uint16_t*>(rows_.data);
  }
  stride = 32 * depth32_;
  if (!bf16_ready_) {
    bf16_ready_ = true;
    simd_->round_rows(rows_, count_, dim_, vectors_ ? power_ : nullptr, forms_.bf16, stride);
    std::memset(forms_.bf16 + count_ * stride, 0, static_cast<std::size_t>((kBlock - count_) * stride) * 2);
  }
  return forms_.bf16;
}

const std::uint32_t* BlockOperand::engine_lanes() {
  if (!lanes_ready_) {
    lanes_ready_ = true;
    std::ptrdiff_t stride = 0;
    const auto* words = reinterpret_cast<const std::uint32_t*>(engine_rows(stride));
    for (int lane = 0; lane < kBlock; lane += 16) {
      plan_->engine->transpose(words + lane * (stride / 2), stride / 2, depth32_, forms_.lanes + lane, kBlock);
    }
  }
  return forms_.lanes;
}

const std::uint32_t* BlockOperand::engine_row_pairs() {
  if (!row_pairs_ready_) {
    row_pairs_ready_ = true;
    std::ptrdiff_t stride = 0;
    const std::uint16_t* rows = engine_rows(stride);
    plan_->engine->pair_rows(rows, stride, kBlock / 2, stride_ / 16, forms_.row_pairs, stride_);
  }
  return forms_.row_pairs;
}

const std::uint16_t* BlockOperand::engine_columns() {
  if (!columns_ready_) {
    columns_ready_ = true;
    const std::uint32_t* pairs = engine_row_pairs();
    auto* words = reinterpret_cast<std::uint32_t*>(forms_.columns);
    for (int half = 0; half < 2; ++half) {
      plan_->engine->transpose(pairs + 16 * half * stride_, stride_, stride_ / 16, words + 16 * half, kBlock / 2);
    }
  }
  return forms_.columns;
}

bool BlockOperand::finite() {
  if (!finite_known_) {
    finite_known_ = true;
    finite_ = simd_->all_finite(rows_, count_, dim_);
  }
  return finite_;
}

}  // namespace tda::cpu
