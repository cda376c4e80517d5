#include "attention/cpu/gradient_tile.h"

#include <algorithm>

namespace tda::cpu {
namespace {

// Survivors in a tile from which matrix products beat one step per survivor (measured).
constexpr int kDenseFp32 = 512, kDenseEngine = 128;

// Survivors in a sum after which it is moved on: enough that the cost disappears.
constexpr int kFlushSurvivors = 256;

constexpr auto kAllRows = [] {
  struct {
    std::uint8_t row[kBlock];
  } list{};
  for (int i = 0; i < kBlock; ++i) list.row[i] = static_cast<std::uint8_t>(i);
  return list;
}();

class TileWork {
 public:
  TileWork(const BackwardPlan& plan, const SimdKernels& simd, const BackwardScratch& scratch, const GradientTile& tile)
      : plan_(plan),
        simd_(simd),
        scratch_(scratch),
        tile_(tile),
        rows_(tile.cotangents->count()),
        keys_(tile.values->count()) {}

  TileSums run(const PowerRule& power) {
    for (int v = 0; v < 2; ++v) {
      if (tile_.view[v].slices == 0) continue;
      compute_scores(v);
      survivors_[v] = weigh(v, power);
    }
    sums_.survivors = survivors_[0] + survivors_[1];
    if (sums_.survivors == 0) return sums_;
    const bool engine = plan_.engine != nullptr;
    // A product would multiply NaN or Inf in the cotangents by weights that are zero.
    if (sums_.survivors < (engine ? kDenseEngine : kDenseFp32) || !tile_.cotangents->finite()) {
      visit_survivors();
    } else if (engine) {
      multiply_with_engine();
    } else {
      multiply_in_fp32();
    }
    return sums_;
  }

 private:
  void compute_scores(int v) {
    const GradientView& view = tile_.view[v];
    for (int group = 0; group < kGroups; ++group) {
      if ((view.slices >> group & 1) == 0) continue;
      // Neighbouring live slices share one product.
      int last = group + 1;
      while (last < kGroups && (view.slices >> last & 1) != 0) ++last;
      const int first_lane = group * kSlice, groups = last - group;
      float* to = scratch_.scores[v] + first_lane;
      if (plan_.engine != nullptr) {
        std::ptrdiff_t stride = 0;
        const std::uint16_t* rows = view.queries->engine_rows(stride);
        plan_.engine->multiply(static_cast<int>(divide_up(rows_, kSlice)), groups, plan_.depth32, rows, stride,
                               view.keys->engine_lanes() + first_lane, kBlock, to, kBlock, false);
      } else {
        const Rows rows = view.queries->fp32();
        simd_.multiply_scores(rows_, groups * kSlice, plan_.head_dim, static_cast<const float*>(rows.data), rows.stride,
                              view.keys->transposed() + first_lane, to);
      }
      group = last;
    }
  }

  int weigh(int v, const PowerRule& power) {
    const GradientView& view = tile_.view[v];
    std::fill_n(masks_[v], kBlock, std::uint64_t{0});
    WeighArguments arguments;
    arguments.rows = kAllRows.row;
    arguments.row_count = rows_;
    arguments.groups = view.slices;
    arguments.allowed = tile_.allowed;
    arguments.row_scale = view.queries->scale();
    arguments.lane_scale = view.keys->scale();
    arguments.row_tau = tile_.query_tau;
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
    const Rows cotangents =
        tile_.cotangents->has_native_rows() ? tile_.cotangents->native_rows() : tile_.cotangents->fp32();
    simd_.accumulate_survivors(either, rows_, scratch_.weights, 1.0f, cotangents, plan_.value_stride,
                               tile_.value_gradient->rows, plan_.value_stride);
    note_survivors(tile_.value_gradient, plan_.value_stride, sums_.survivors);
  }

  void visit_survivors(int v, KeySum* value_gradient) {
    const GradientView& view = tile_.view[v];
    SurvivorGradientArguments arguments;
    arguments.masks = masks_[v];
    arguments.row_count = rows_;
    arguments.weight = scratch_.scores[v];
    arguments.derivative = scratch_.derivative[v];
    arguments.row_scale = view.queries->scale();
    arguments.lane_scale = view.keys->scale();
    arguments.threshold_scale = tile_.threshold_scale;
    arguments.factor = view.factor;
    // One element type for all four: in place if all can be, else fp32 copies.
    const bool units = plan_.engine == nullptr;
    const bool native = (units || (view.queries->has_native_rows() && view.keys->has_native_rows())) &&
                        tile_.values->has_native_rows() && tile_.cotangents->has_native_rows();
    const auto rows = [&](BlockOperand* operand, bool vectors) {
      return native && !(vectors && units) ? operand->native_rows() : operand->fp32();
    };
    arguments.values = rows(tile_.values, false);
    arguments.cotangents = rows(tile_.cotangents, false);
    arguments.queries = rows(view.queries, true);
    arguments.keys = rows(view.keys, true);
    arguments.value_dim = plan_.value_stride;
    arguments.head_dim = plan_.head_stride;
    arguments.query_gradient = view.query_gradient;
    arguments.key_gradient = view.key_gradient == nullptr ? nullptr : view.key_gradient->rows;
    arguments.value_gradient = value_gradient == nullptr ? nullptr : value_gradient->rows;
    arguments.g = &sums_.g;
    arguments.ap = v == 1 ? &sums_.ap : nullptr;
    simd_.survivor_gradients(arguments);
    note_survivors(view.key_gradient, plan_.head_stride, survivors_[v]);
    note_survivors(value_gradient, plan_.value_stride, survivors_[v]);
  }

  void note_survivors(KeySum* sum, int stride, int survivors) const {
    if (sum == nullptr) return;
    sum->pending += survivors;
    if (sum->pending >= kFlushSurvivors && plan_.engine == nullptr) flush_sum(stride, *sum);
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

  // The combined weights, without a pass over the tile where one view fills it.
  const float* tile_weights() {
    if (survivors_[1] == 0 && fills_tile(0)) return scratch_.scores[0];
    combine_weights();
    return scratch_.weights;
  }

  // Whether the kernel that weighs has written every element.
  bool fills_tile(int v) const { return tile_.view[v].slices == 0xF && rows_ == kBlock; }

  // Turns the derivatives of a view into g = dL/ds, with zeros wherever nothing survives; g / |q| and g / |k| where
  // the vectors are raw.
  void combine(int v, float* scaled_by_keys) {
    const GradientView& view = tile_.view[v];
    if (!fills_tile(v)) {
      simd_.select_survivors(masks_[v], kBlock, scratch_.scores[v], 1.0f, scratch_.scores[v], false);
      simd_.select_survivors(masks_[v], kBlock, scratch_.derivative[v], 1.0f, scratch_.derivative[v], false);
    }
    CombineArguments arguments;
    arguments.row_count = rows_;
    arguments.weight = scratch_.scores[v];
    arguments.products = scratch_.products;
    arguments.factor = view.factor;
    arguments.row_scale = view.queries->scale();
    arguments.lane_scale = view.keys->scale();
    arguments.threshold_scale = tile_.threshold_scale;
    arguments.g = &sums_.g;
    arguments.ap = v == 1 ? &sums_.ap : nullptr;
    simd_.combine_gradients(arguments, scratch_.derivative[v], scaled_by_keys);
    if (scaled_by_keys != nullptr) std::fill(scaled_by_keys + rows_ * kBlock, scaled_by_keys + kTile, 0.0f);
  }

  void multiply_in_fp32() {
    const Rows cotangents = tile_.cotangents->fp32();
    const auto* cotangent_rows = static_cast<const float*>(cotangents.data);
    simd_.multiply_scores(rows_, kBlock, plan_.value_dim, cotangent_rows, cotangents.stride, tile_.values->transposed(),
                          scratch_.products);
    for (int v = 0; v < 2; ++v) {
      if (survivors_[v] == 0) continue;
      combine(v, nullptr);
      const GradientView& view = tile_.view[v];
      if (view.query_gradient != nullptr) {
        const Rows keys = view.keys->fp32();
        simd_.multiply(rows_, plan_.head_stride, keys_, scratch_.derivative[v], kBlock, 1,
                       static_cast<const float*>(keys.data), keys.stride, view.query_gradient, plan_.head_stride,
                       ProductMode::kAddSum);
      }
      if (view.key_gradient != nullptr) {
        const Rows queries = view.queries->fp32();
        simd_.multiply(keys_, plan_.head_stride, rows_, scratch_.derivative[v], 1, kBlock,
                       static_cast<const float*>(queries.data), queries.stride, view.key_gradient->total,
                       plan_.head_stride, ProductMode::kAddSum);
      }
    }
    if (tile_.value_gradient == nullptr) return;
    simd_.multiply(keys_, plan_.value_stride, rows_, tile_weights(), 1, kBlock, cotangent_rows, cotangents.stride,
                   tile_.value_gradient->total, plan_.value_stride, ProductMode::kAddSum);
  }

  void multiply_with_engine() {
    std::ptrdiff_t stride = 0;
    const std::uint16_t* cotangents = tile_.cotangents->engine_rows(stride);
    plan_.engine->multiply(kGroups, kGroups, plan_.value_depth32, cotangents, stride, tile_.values->engine_lanes(),
                           kBlock, scratch_.products, kBlock, false);
    for (int v = 0; v < 2; ++v) {
      if (survivors_[v] == 0) continue;
      const GradientView& view = tile_.view[v];
      combine(v, view.query_gradient == nullptr ? nullptr : scratch_.weights);
      if (view.query_gradient != nullptr) {
        plan_.engine->round_weights(scratch_.weights, scratch_.rows_bf16);
        plan_.engine->multiply(kGroups, plan_.head_stride / 16, 2, scratch_.rows_bf16, kBlock,
                               view.keys->engine_row_pairs(), plan_.head_stride, view.query_gradient, plan_.head_stride,
                               true);
      }
      if (view.key_gradient != nullptr) {
        add_product(scratch_.derivative[v], view.queries->engine_columns(), plan_.head_stride, *view.key_gradient);
      }
    }
    if (tile_.value_gradient == nullptr) return;
    add_product(tile_weights(), tile_.cotangents->engine_columns(), plan_.value_stride, *tile_.value_gradient);
  }

  // gradient[column][key] += sum over queries of columns[column][query] * weights[query][key].
  void add_product(const float* weights, const std::uint16_t* columns, int stride, KeySum& sum) {
    plan_.engine->pair_weights(weights, kBlock / 2, scratch_.pairs);
    plan_.engine->multiply(stride / 16, kGroups, 2, columns, kBlock, scratch_.pairs, kBlock, sum.transposed, kBlock,
                           sum.transposed_used);
    sum.transposed_used = true;
  }

  const BackwardPlan& plan_;
  const SimdKernels& simd_;
  const BackwardScratch& scratch_;
  const GradientTile& tile_;
  int rows_, keys_;
  int survivors_[2] = {0, 0};
  TileSums sums_;
  std::uint64_t masks_[2][kBlock];
};

}  // namespace

TileSums add_gradient_tile(const BackwardPlan& plan, const SimdKernels& simd, const BackwardScratch& scratch,
                           const PowerRule& power, const GradientTile& tile) {
  return TileWork(plan, simd, scratch, tile).run(power);
}

void start_sum(const BackwardPlan& plan, int stride, KeySum& sum) {
  sum.started = true;
  sum.transposed_used = false;
  sum.pending = 0;
  std::fill_n(sum.rows, kBlock * stride, 0.0f);
  if (plan.engine == nullptr) std::fill_n(sum.total, kBlock * stride, 0.0f);
}

void flush_sum(int stride, KeySum& sum) {
  if (sum.pending == 0) return;
  sum.pending = 0;
  for (int i = 0; i < kBlock * stride; ++i) {
    sum.total[i] += sum.rows[i];
    sum.rows[i] = 0.0f;
  }
}

float* finish_sum(const BackwardPlan& plan, int dim, int stride, KeySum& sum) {
  if (plan.engine == nullptr) {
    flush_sum(stride, sum);
    return sum.total;
  }
  if (sum.transposed_used) {
    for (int lane = 0; lane < kBlock; ++lane) {
      for (int d = 0; d < dim; ++d) sum.rows[lane * stride + d] += sum.transposed[d * kBlock + lane];
    }
  }
  return sum.rows;
}

}  // namespace tda::cpu
