#include "attention/cpu/gradient_tile.h"

#include <cstring>

namespace tda::cpu {
namespace {

// Survivors in a tile from which matrix products beat one step per survivor (measured).
constexpr int kDenseFp32 = 512, kDenseEngine = 128;

}  // namespace

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
  fp32_ready_ = transposed_ready_ = bf16_ready_ = pairs_ready_ = columns_ready_ = finite_known_ = false;
  plain_ = true;
  if (vectors_) {
    plain_ = all_plain(inverse, count);
    split_scale(inverse, count, power_, scale_);
    if (plan.engine == nullptr) {
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
    const auto* from = static_cast<const float*>(rows.data);
    if (count_ == kBlock) {
      transpose_lanes(from, rows.stride, kBlock, dim_, forms_.transposed);
    } else {
      std::memset(forms_.transposed, 0, static_cast<std::size_t>(dim_) * kBlock * sizeof(float));
      transpose_lanes(from, rows.stride, count_, dim_, forms_.transposed);
    }
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

const std::uint32_t* BlockOperand::engine_pairs() {
  if (!pairs_ready_) {
    pairs_ready_ = true;
    std::ptrdiff_t stride = 0;
    const auto* words = reinterpret_cast<const std::uint32_t*>(engine_rows(stride));
    for (int lane = 0; lane < kBlock; lane += 16) {
      plan_->engine->transpose(words + lane * (stride / 2), stride / 2, depth32_, forms_.pairs + lane, kBlock);
    }
  }
  return forms_.pairs;
}

const std::uint16_t* BlockOperand::engine_columns(std::uint32_t* column_pairs) {
  if (!columns_ready_) {
    columns_ready_ = true;
    std::ptrdiff_t stride = 0;
    const std::uint16_t* rows = engine_rows(stride);
    plan_->engine->pair_rows(rows, stride, kBlock / 2, stride_ / 16, column_pairs, stride_);
    auto* words = reinterpret_cast<std::uint32_t*>(forms_.columns);
    for (int half = 0; half < 2; ++half) {
      plan_->engine->transpose(column_pairs + 16 * half * stride_, stride_, stride_ / 16, words + 16 * half,
                               kBlock / 2);
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

namespace {

class TileWork {
 public:
  TileWork(const BackwardPlan& plan, const SimdKernels& simd, const BackwardScratch& scratch, const GradientTile& tile)
      : plan_(plan), simd_(simd), scratch_(scratch), tile_(tile), rows_(tile.row_values->count()) {}

  int run(const PowerRule& power) {
    for (int v = 0; v < 2; ++v) {
      if (tile_.view[v].row_slices == 0) continue;
      compute_scores(v);
      survivors_[v] = weigh(v, power);
    }
    const int survivors = survivors_[0] + survivors_[1];
    if (survivors == 0) return 0;
    const bool engine = plan_.engine != nullptr;
    // A product would multiply NaN or Inf in the values by weights that are zero.
    const bool dense = survivors >= (engine ? kDenseEngine : kDenseFp32) &&
                       (tile_.value_gradient == nullptr || tile_.row_values->finite());
    if (!dense) {
      visit_survivors();
    } else if (engine) {
      multiply_with_engine();
    } else {
      multiply_in_fp32();
    }
    return survivors;
  }

 private:
  void compute_scores(int v) {
    const unsigned slices = tile_.view[v].row_slices;
    for (int slice = 0; slice * kSlice < rows_; ++slice) {
      if ((slices >> slice & 1) == 0) continue;
      // Neighbouring live slices share one product.
      int last = slice + 1;
      while (last < kGroups && (slices >> last & 1) != 0) ++last;
      const int first_row = slice * kSlice;
      score_rows(v, first_row, std::min(rows_, last * kSlice) - first_row);
      slice = last;
    }
  }

  void score_rows(int v, int first_row, int count) {
    const GradientView& view = tile_.view[v];
    for (int group = 0; group < kGroups; ++group) {
      if ((view.lane_groups >> group & 1) == 0) continue;
      int last = group + 1;
      while (last < kGroups && (view.lane_groups >> last & 1) != 0) ++last;
      const int first_lane = group * kSlice, groups = last - group;
      float* to = scratch_.scores[v] + first_row * kBlock + first_lane;
      if (plan_.engine != nullptr) {
        std::ptrdiff_t stride = 0;
        const std::uint16_t* rows = view.row_vectors->engine_rows(stride);
        plan_.engine->multiply(static_cast<int>(divide_up(count, kSlice)), groups, plan_.depth32,
                               rows + first_row * stride, stride, view.lane_vectors->engine_pairs() + first_lane,
                               kBlock, to, kBlock, false);
      } else {
        const Rows rows = view.row_vectors->fp32();
        simd_.multiply_scores(count, groups * kSlice, plan_.head_dim,
                              static_cast<const float*>(rows.data) + first_row * rows.stride, rows.stride,
                              view.lane_vectors->transposed() + first_lane, to);
      }
      group = last;
    }
  }

  int weigh(int v, const PowerRule& power) {
    const GradientView& view = tile_.view[v];
    std::uint8_t list[kBlock];
    int listed = 0;
    for (int row = 0; row < rows_; ++row) {
      if ((view.row_slices >> (row / kSlice) & 1) != 0) list[listed++] = static_cast<std::uint8_t>(row);
    }
    std::fill_n(masks_[v], kBlock, std::uint64_t{0});
    WeighArguments arguments;
    arguments.rows = list;
    arguments.row_count = listed;
    arguments.groups = view.lane_groups;
    arguments.allowed = tile_.allowed;
    arguments.row_scale = view.row_vectors->scale();
    arguments.lane_scale = view.lane_vectors->scale();
    arguments.row_tau = tile_.row_tau;
    arguments.lane_tau = tile_.lane_tau;
    arguments.power = power;
    return simd_.weigh(arguments, scratch_.scores[v], scratch_.derivative[v], masks_[v]);
  }

  void visit_survivors() {
    const bool both = survivors_[0] != 0 && survivors_[1] != 0;
    for (int v = 0; v < 2; ++v) {
      if (survivors_[v] != 0) visit_survivors(v, both ? nullptr : tile_.value_gradient);
    }
    if (!both || tile_.value_gradient == nullptr) return;
    combine_weights();
    std::uint64_t either[kBlock];
    for (int row = 0; row < kBlock; ++row) either[row] = masks_[0][row] | masks_[1][row];
    const Rows values =
        tile_.row_values->has_native_rows() ? tile_.row_values->native_rows() : tile_.row_values->fp32();
    simd_.accumulate_survivors(either, rows_, scratch_.weights, 1.0f, values, plan_.value_stride, tile_.value_gradient,
                               plan_.value_stride);
  }

  void visit_survivors(int v, float* value_gradient) {
    const GradientView& view = tile_.view[v];
    SurvivorGradientArguments arguments;
    arguments.masks = masks_[v];
    arguments.row_count = rows_;
    arguments.weight = scratch_.scores[v];
    arguments.derivative = scratch_.derivative[v];
    arguments.row_scale = view.row_vectors->scale();
    arguments.factor = view.factor;
    // One element type for all three: in place if all can be, else fp32 copies.
    const bool unit_vectors = plan_.engine == nullptr;
    if ((unit_vectors || view.row_vectors->has_native_rows()) && tile_.row_values->has_native_rows() &&
        tile_.lane_values->has_native_rows()) {
      arguments.lane_values = tile_.lane_values->native_rows();
      arguments.row_values = tile_.row_values->native_rows();
      arguments.row_vectors = unit_vectors ? view.row_vectors->fp32() : view.row_vectors->native_rows();
    } else {
      arguments.lane_values = tile_.lane_values->fp32();
      arguments.row_values = tile_.row_values->fp32();
      arguments.row_vectors = view.row_vectors->fp32();
    }
    arguments.value_dim = plan_.value_stride;
    arguments.head_dim = plan_.head_stride;
    arguments.lane_gradient = view.gradient;
    arguments.gradient_stride = plan_.head_stride;
    arguments.value_gradient = value_gradient;
    arguments.value_stride = plan_.value_stride;
    arguments.lane_g = tile_.lane_g;
    arguments.lane_ap = view.lane_ap;
    simd_.survivor_gradients(arguments);
  }

  // weights_1 - lambda weights_2, zero where nothing survives.
  void combine_weights() {
    bool started = false;
    for (int v = 0; v < 2; ++v) {
      if (survivors_[v] == 0) continue;
      simd_.select_survivors(masks_[v], kBlock, scratch_.scores[v], tile_.view[v].factor, scratch_.weights, started);
      started = true;
    }
  }

  // Turns the derivatives of a view into dL/ds / |row vector|, with zeros wherever nothing survives.
  void combine(int v) {
    const GradientView& view = tile_.view[v];
    simd_.select_survivors(masks_[v], kBlock, scratch_.scores[v], 1.0f, scratch_.scores[v], false);
    simd_.select_survivors(masks_[v], kBlock, scratch_.derivative[v], 1.0f, scratch_.derivative[v], false);
    simd_.combine_gradients(rows_, scratch_.scores[v], scratch_.derivative[v], scratch_.products, view.factor,
                            view.row_vectors->scale(), tile_.lane_g, view.lane_ap);
  }

  void multiply_in_fp32() {
    const Rows values = tile_.row_values->fp32();
    const auto* value_rows = static_cast<const float*>(values.data);
    simd_.multiply_scores(rows_, kBlock, plan_.value_dim, value_rows, values.stride, tile_.lane_values->transposed(),
                          scratch_.products);
    for (int v = 0; v < 2; ++v) {
      if (survivors_[v] == 0) continue;
      combine(v);
      if (tile_.view[v].gradient == nullptr) continue;
      const Rows vectors = tile_.view[v].row_vectors->fp32();
      simd_.multiply(kBlock, plan_.head_stride, rows_, scratch_.derivative[v], 1, kBlock,
                     static_cast<const float*>(vectors.data), vectors.stride, tile_.view[v].gradient, plan_.head_stride,
                     true);
    }
    if (tile_.value_gradient == nullptr) return;
    combine_weights();
    simd_.multiply(kBlock, plan_.value_stride, rows_, scratch_.weights, 1, kBlock, value_rows, values.stride,
                   tile_.value_gradient, plan_.value_stride, true);
  }

  void multiply_with_engine() {
    std::ptrdiff_t stride = 0;
    const std::uint16_t* values = tile_.row_values->engine_rows(stride);
    plan_.engine->multiply(kGroups, kGroups, plan_.value_depth32, values, stride, tile_.lane_values->engine_pairs(),
                           kBlock, scratch_.products, kBlock, false);
    for (int v = 0; v < 2; ++v) {
      if (survivors_[v] == 0) continue;
      combine(v);
      const GradientView& view = tile_.view[v];
      if (view.gradient == nullptr) continue;
      add_product(scratch_.derivative[v], view.row_vectors->engine_columns(scratch_.column_pairs), plan_.head_stride,
                  view.gradient_transposed, view.transposed_used);
    }
    if (tile_.value_gradient == nullptr) return;
    combine_weights();
    add_product(scratch_.weights, tile_.row_values->engine_columns(scratch_.column_pairs), plan_.value_stride,
                tile_.value_gradient_transposed, tile_.value_transposed_used);
  }

  // gradient[column][lane] += sum over rows of columns[column][row] * weights[row][lane].
  void add_product(const float* weights, const std::uint16_t* columns, int stride, float* gradient, bool* used) {
    plan_.engine->pair_weights(weights, kBlock / 2, scratch_.pairs);
    plan_.engine->multiply(stride / 16, kGroups, 2, columns, kBlock, scratch_.pairs, kBlock, gradient, kBlock, *used);
    *used = true;
  }

  const BackwardPlan& plan_;
  const SimdKernels& simd_;
  const BackwardScratch& scratch_;
  const GradientTile& tile_;
  int rows_;
  int survivors_[2] = {0, 0};
  std::uint64_t masks_[2][kBlock];
};

}  // namespace

int add_gradient_tile(const BackwardPlan& plan, const SimdKernels& simd, const BackwardScratch& scratch,
                      const PowerRule& power, const GradientTile& tile) {
  return TileWork(plan, simd, scratch, tile).run(power);
}

}  // namespace tda::cpu
