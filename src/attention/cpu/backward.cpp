// The backward pass over the survivor index: a query pass for dq, dbeta and dlambda, a key pass for dk and dv.
//
// Both passes recompute the scores of live slices and are free of atomics: every sum has one owner and a fixed order,
// so the result does not depend on threads or timing. Blocks without survivors only write zeros.
#include <bit>
#include <cstring>

#include "attention/cpu/backward_plan.h"
#include "attention/cpu/cpu_attention.h"
#include "attention/cpu/gradient_tile.h"
#include "attention/cpu/parallel.h"

namespace tda::cpu {
namespace {

struct Call {
  const Problem& problem;
  const BackwardPlan& plan;
  const BackwardShared& shared;
  const SurvivorIndex& index;
  const ConstTensor& d_output;
  const BackwardOutputs& outputs;
  PowerRule power;

  Rows cotangents(std::int64_t head, std::int64_t row) const {
    return problem.rows(d_output, problem.shape.query_heads, head, row);
  }
  int views() const { return problem.options.views; }
};

int rows_of_block(std::int64_t length, std::int64_t block) {
  return static_cast<int>(std::min<std::int64_t>(kBlock, length - block * kBlock));
}

// Enough that the cost of a flush disappears.
constexpr int kFlushSurvivors = 256;

class GradientWorker {
 public:
  GradientWorker(const Call& call, void* scratch)
      : call_(call), problem_(call.problem), plan_(call.plan), scratch_(call.plan, call.problem.options, scratch) {}

  // dq, and the shares of dbeta and dlambda, of one block of queries.
  void visit_queries(std::int64_t head, std::int64_t block) {
    const std::int64_t first = block * kBlock;
    const int count = rows_of_block(problem_.shape.query_length, block);
    const std::int64_t key_head = problem_.key_head_of(head);
    const std::int64_t last_key = problem_.position_of(first + count - 1);
    float tau[kBlock] = {}, tau_low[kBlock] = {};
    double g[kBlock] = {}, ap[kBlock] = {};
    split_thresholds(problem_.beta(head), call_.shared.threshold_scale + first, count, tau, tau_low);
    lane_values_.set(plan_, problem_.simd, scratch_.lane_values, call_.cotangents(head, first), count, plan_.value_dim,
                     nullptr, nullptr);
    begin_sums();
    const std::int64_t offset = head * problem_.shape.query_length + first;
    for (std::int64_t key_block = 0; key_block * kBlock <= last_key; ++key_block) {
      unsigned live[2] = {0, 0};
      for (int v = 0; v < call_.views(); ++v) {
        live[v] = call_.index.tile(v, head, block, key_block);
        if (live[v] == 0 || started_[v]) continue;
        lane_vectors_[v].set(plan_, problem_.simd, scratch_.lane_vectors[v], problem_.queries(v, head, first), count,
                             plan_.head_dim, call_.shared.query_inverse[v] + offset,
                             call_.shared.query_low[v] + offset);
        started_[v] = true;
      }
      if ((live[0] | live[1]) != 0) {
        query_tile(head, key_head, first, count, key_block, live, {tau, tau_low}, g, ap);
      }
    }
    for (int v = 0; v < call_.views(); ++v) {
      finish_vectors(v, call_.outputs.dq[v], problem_.shape.query_heads, head, first, count,
                     problem_.queries(v, head, first), call_.shared.query_inverse[v] + offset,
                     call_.shared.query_low[v] + offset);
    }
    double dbeta = 0.0, dlambda = 0.0;
    for (int lane = 0; lane < count; ++lane) {
      dbeta -= call_.shared.threshold_scale[first + lane] * g[lane];
      dlambda -= ap[lane];
    }
    call_.shared.dbeta[head * plan_.query_blocks + block] = dbeta;
    call_.shared.dlambda[head * plan_.query_blocks + block] = dlambda;
  }

  // dk and dv of one block of keys.
  void visit_keys(std::int64_t key_head, std::int64_t block) {
    const std::int64_t first = block * kBlock;
    const int count = rows_of_block(problem_.shape.key_length, block);
    lane_values_.set(plan_, problem_.simd, scratch_.lane_values, problem_.values(key_head, first), count,
                     plan_.value_dim, nullptr, nullptr);
    // The first query that sees a key of the block.
    const std::int64_t first_query = std::max<std::int64_t>(0, first - problem_.position_of(0));
    const std::int64_t group = problem_.group();
    const std::int64_t first_head =
        key_head / problem_.shape.key_heads * problem_.shape.query_heads + key_head % problem_.shape.key_heads * group;
    begin_sums();
    const std::int64_t offset = key_head * problem_.shape.key_length + first;
    for (std::int64_t head = first_head; head < first_head + group; ++head) {
      for (std::int64_t query_block = first_query / kBlock; query_block < plan_.query_blocks; ++query_block) {
        unsigned live[2] = {0, 0};
        for (int v = 0; v < call_.views(); ++v) {
          live[v] = call_.index.tile(v, head, query_block, block);
          if (live[v] == 0 || started_[v]) continue;
          lane_vectors_[v].set(plan_, problem_.simd, scratch_.lane_vectors[v], problem_.keys(v, key_head, first), count,
                               plan_.head_dim, call_.shared.key_inverse[v] + offset, call_.shared.key_low[v] + offset);
          started_[v] = true;
        }
        if ((live[0] | live[1]) != 0) key_tile(head, first, count, query_block, live);
      }
    }
    for (int v = 0; v < call_.views(); ++v) {
      finish_vectors(v, call_.outputs.dk[v], problem_.shape.key_heads, key_head, first, count,
                     problem_.keys(v, key_head, first), call_.shared.key_inverse[v] + offset,
                     call_.shared.key_low[v] + offset);
    }
    if (call_.outputs.dv.data == nullptr) return;
    collect(scratch_.value_gradient, scratch_.value_total, kBlock * plan_.value_stride);
    if (value_transposed_used_) {
      add_transposed(scratch_.value_gradient_transposed, plan_.value_dim, plan_.value_stride, scratch_.value_gradient);
    }
    problem_.simd.store_rows(
        scratch_.value_gradient, plan_.value_stride, count, plan_.value_dim, problem_.options.data_type,
        output_row(problem_, call_.outputs.dv, problem_.shape.key_heads, key_head, first), call_.outputs.dv.row_stride);
  }

 private:
  void begin_sums() {
    for (int v = 0; v < call_.views(); ++v) {
      started_[v] = transposed_used_[v] = false;
      std::fill_n(scratch_.vector_gradient[v], kBlock * plan_.head_stride, 0.0f);
      std::fill_n(scratch_.vector_total[v], kBlock * plan_.head_stride, 0.0f);
    }
    std::fill_n(scratch_.value_gradient, kBlock * plan_.value_stride, 0.0f);
    std::fill_n(scratch_.value_total, kBlock * plan_.value_stride, 0.0f);
    value_transposed_used_ = flushed_ = false;
    pending_ = 0;
  }

  static void add_transposed(const float* transposed, int dim, int stride, float* rows) {
    for (int lane = 0; lane < kBlock; ++lane) {
      for (int d = 0; d < dim; ++d) rows[lane * stride + d] += transposed[d * kBlock + lane];
    }
  }

  GradientView tile_view(int v, std::int64_t head, const Tensor& output) {
    GradientView view;
    view.lane_vectors = &lane_vectors_[v];
    view.row_vectors = &row_vectors_[v];
    view.factor = problem_.view_factor(v, head);
    view.gradient = output.data != nullptr ? scratch_.vector_gradient[v] : nullptr;
    view.gradient_transposed = scratch_.vector_gradient_transposed[v];
    view.transposed_used = &transposed_used_[v];
    return view;
  }

  void query_tile(std::int64_t head, std::int64_t key_head, std::int64_t first, int count, std::int64_t key_block,
                  const unsigned live[2], Threshold tau, double* g, double* ap) {
    const std::int64_t first_key = key_block * kBlock, offset = key_head * problem_.shape.key_length + first_key;
    const int keys = rows_of_block(problem_.shape.key_length, key_block);
    row_values_.set(plan_, problem_.simd, scratch_.row_values, problem_.values(key_head, first_key), keys,
                    plan_.value_dim, nullptr, nullptr);
    GradientTile tile;
    for (int v = 0; v < call_.views(); ++v) {
      if (live[v] == 0) continue;
      row_vectors_[v].set(plan_, problem_.simd, scratch_.row_vectors[v], problem_.keys(v, key_head, first_key), keys,
                          plan_.head_dim, call_.shared.key_inverse[v] + offset, call_.shared.key_low[v] + offset);
      tile.view[v] = tile_view(v, head, call_.outputs.dq[v]);
      tile.view[v].row_slices = live[v];
      tile.view[v].lane_groups = 0xF;
    }
    float tile_g[kBlock] = {}, tile_ap[kBlock] = {};
    tile.view[1].lane_ap = tile_ap;
    tile.lane_values = &lane_values_;
    tile.row_values = &row_values_;
    tile.lane_tau = tau;
    tile.lane_g = tile_g;
    const std::int64_t first_position = problem_.position_of(first);
    if (count < kBlock || first_key + keys - 1 > first_position) {
      for (int key = 0; key < keys; ++key) allowed_[key] = lanes_seeing_key(first_position, count, first_key + key);
      tile.allowed = allowed_;
    }
    if (add_tile(tile) == 0) return;
    for (int lane = 0; lane < count; ++lane) {
      g[lane] += static_cast<double>(tile_g[lane]);
      ap[lane] += static_cast<double>(tile_ap[lane]);
    }
  }

  void key_tile(std::int64_t head, std::int64_t first, int count, std::int64_t query_block, const unsigned live[2]) {
    const std::int64_t first_query = query_block * kBlock, offset = head * problem_.shape.query_length + first_query;
    const int queries = rows_of_block(problem_.shape.query_length, query_block);
    row_values_.set(plan_, problem_.simd, scratch_.row_values, call_.cotangents(head, first_query), queries,
                    plan_.value_dim, nullptr, nullptr);
    GradientTile tile;
    for (int v = 0; v < call_.views(); ++v) {
      if (live[v] == 0) continue;
      row_vectors_[v].set(plan_, problem_.simd, scratch_.row_vectors[v], problem_.queries(v, head, first_query),
                          queries, plan_.head_dim, call_.shared.query_inverse[v] + offset,
                          call_.shared.query_low[v] + offset);
      tile.view[v] = tile_view(v, head, call_.outputs.dk[v]);
      tile.view[v].row_slices = 0xF;
      tile.view[v].lane_groups = live[v];
    }
    float tau[kBlock] = {}, tau_low[kBlock] = {};
    split_thresholds(problem_.beta(head), call_.shared.threshold_scale + first_query, queries, tau, tau_low);
    tile.lane_values = &lane_values_;
    tile.row_values = &row_values_;
    tile.row_tau = {tau, tau_low};
    if (count < kBlock || first + count - 1 > problem_.position_of(first_query)) {
      for (int row = 0; row < queries; ++row) {
        allowed_[row] = lanes_seen_by(problem_.position_of(first_query + row), first, count);
      }
      tile.allowed = allowed_;
    }
    if (call_.outputs.dv.data != nullptr) {
      tile.value_gradient = scratch_.value_gradient;
      tile.value_gradient_transposed = scratch_.value_gradient_transposed;
      tile.value_transposed_used = &value_transposed_used_;
    }
    add_tile(tile);
  }

  int add_tile(const GradientTile& tile) {
    const int survivors = add_gradient_tile(plan_, problem_.simd, scratch_, call_.power, tile);
    pending_ += survivors;
    if (pending_ >= kFlushSurvivors) flush();
    return survivors;
  }

  // Moves partial sums into totals, so that rounding errors grow with the length of parts and not of the whole sum.
  // bf16 gradients do not need it.
  void flush() {
    pending_ = 0;
    if (plan_.engine != nullptr) return;
    for (int v = 0; v < call_.views(); ++v) {
      move_sums(scratch_.vector_gradient[v], kBlock * plan_.head_stride, scratch_.vector_total[v]);
    }
    move_sums(scratch_.value_gradient, kBlock * plan_.value_stride, scratch_.value_total);
    flushed_ = true;
  }

  static void move_sums(float* from, int count, float* to) {
    for (int i = 0; i < count; ++i) {
      to[i] += from[i];
      from[i] = 0.0f;
    }
  }

  // Adds the totals back.
  void collect(float* rows, const float* total, int count) const {
    for (int i = 0; flushed_ && i < count; ++i) rows[i] += total[i];
  }

  // Undoes the L2 norm and stores dq or dk.
  void finish_vectors(int v, const Tensor& output, std::int64_t heads_per_batch, std::int64_t head, std::int64_t first,
                      int count, Rows x, const float* inverse, const float* low) {
    if (output.data == nullptr) return;
    void* to = output_row(problem_, output, heads_per_batch, head, first);
    if (!started_[v]) {
      zero_rows(problem_.options.data_type, to, output.row_stride, count, plan_.head_dim);
      return;
    }
    float* rows = scratch_.vector_gradient[v];
    collect(rows, scratch_.vector_total[v], kBlock * plan_.head_stride);
    if (transposed_used_[v]) {
      add_transposed(scratch_.vector_gradient_transposed[v], plan_.head_dim, plan_.head_stride, rows);
    }
    if (problem_.options.normalize) {
      problem_.simd.normalize_backward(rows, plan_.head_stride, x, count, plan_.head_dim, inverse, low);
    }
    problem_.simd.store_rows(rows, plan_.head_stride, count, plan_.head_dim, problem_.options.data_type, to,
                             output.row_stride);
  }

  const Call& call_;
  const Problem& problem_;
  const BackwardPlan& plan_;
  const BackwardScratch scratch_;
  BlockOperand lane_vectors_[2], row_vectors_[2], lane_values_, row_values_;
  bool started_[2] = {false, false}, transposed_used_[2] = {false, false}, value_transposed_used_ = false;
  bool flushed_ = false;
  int pending_ = 0;  // survivors since the last flush
  std::uint64_t allowed_[kBlock];
};

// Live slices of every unit of both passes, as weight << 32 | unit, heaviest first.
void order_units(const Call& call) {
  const Problem& problem = call.problem;
  const BackwardPlan& plan = call.plan;
  const std::int64_t group = problem.group();
  for_each_unit(problem.options, problem.key_heads(), [&](int, std::int64_t key_head) {
    std::uint64_t* keys = call.shared.key_order + key_head * plan.key_blocks;
    for (std::int64_t block = 0; block < plan.key_blocks; ++block) {
      keys[block] = static_cast<std::uint64_t>(key_head * plan.key_blocks + block);
    }
    const std::int64_t first_head =
        key_head / problem.shape.key_heads * problem.shape.query_heads + key_head % problem.shape.key_heads * group;
    for (std::int64_t head = first_head; head < first_head + group; ++head) {
      for (std::int64_t block = 0; block < plan.query_blocks; ++block) {
        std::uint64_t weight = 0;
        for (int v = 0; v < call.views(); ++v) {
          const std::uint64_t* row = call.index.row(v, head, block);
          for (std::int64_t word = 0; word < call.index.row_words(); ++word) {
            weight += static_cast<std::uint64_t>(std::popcount(row[word]));
            for (std::uint64_t bits = row[word]; bits != 0;) {
              const int tile = std::countr_zero(bits) / kGroups;
              const std::uint64_t nibble = std::uint64_t{0xF} << (tile * kGroups);
              keys[word * 16 + tile] += static_cast<std::uint64_t>(std::popcount(bits & nibble)) << 32;
              bits &= ~nibble;
            }
          }
        }
        const std::int64_t unit = head * plan.query_blocks + block;
        call.shared.query_order[unit] = weight << 32 | static_cast<std::uint64_t>(unit);
      }
    }
  });
}

// Norms of the heads that hold survivors.
void compute_norms(const Call& call) {
  const Problem& problem = call.problem;
  const AttentionShape& shape = problem.shape;
  const std::int64_t heads = problem.heads();
  constexpr std::int64_t kScaleRows = 1024;
  const std::int64_t scale_units = divide_up(shape.query_length, kScaleRows);
  for_each_unit(problem.options, call.views() * heads + scale_units, [&](int, std::int64_t unit) {
    if (unit >= call.views() * heads) {
      const std::int64_t first = (unit - call.views() * heads) * kScaleRows;
      threshold_scales(problem, first, std::min(kScaleRows, shape.query_length - first),
                       call.shared.threshold_scale + first);
      return;
    }
    const int v = static_cast<int>(unit / heads);
    const std::int64_t head = unit % heads, key_head = problem.key_head_of(head);
    const auto live = [&](std::int64_t which) {
      const std::uint64_t* words = call.index.row(v, which, 0);
      const std::int64_t count = call.plan.query_blocks * call.index.row_words();
      return std::any_of(words, words + count, [](std::uint64_t word) { return word != 0; });
    };
    if (live(head)) {
      const std::int64_t offset = head * shape.query_length;
      problem.simd.inverse_norms(problem.queries(v, head, 0), static_cast<int>(shape.query_length), call.plan.head_dim,
                                 problem.options.normalize, call.shared.query_inverse[v] + offset,
                                 call.shared.query_low[v] + offset);
    }
    // The first head of a group computes the norms of its keys.
    if (head % problem.group() != 0) return;
    for (std::int64_t which = head; which < head + problem.group(); ++which) {
      if (!live(which)) continue;
      const std::int64_t offset = key_head * shape.key_length;
      problem.simd.inverse_norms(problem.keys(v, key_head, 0), static_cast<int>(shape.key_length), call.plan.head_dim,
                                 problem.options.normalize, call.shared.key_inverse[v] + offset,
                                 call.shared.key_low[v] + offset);
      break;
    }
  });
}

// dbeta and dlambda from the shares of the query blocks, in a fixed order. lambda's gradient passes on [0, 1] only.
void reduce_parameters(const Call& call) {
  const AttentionShape& shape = call.problem.shape;
  for (std::int64_t head = 0; head < shape.query_heads; ++head) {
    double dbeta = 0.0, dlambda = 0.0;
    for (std::int64_t batch = 0; batch < shape.batch; ++batch) {
      const std::int64_t first = (batch * shape.query_heads + head) * call.plan.query_blocks;
      for (std::int64_t unit = first; unit < first + call.plan.query_blocks; ++unit) {
        dbeta += call.shared.dbeta[unit];
        dlambda += call.shared.dlambda[unit];
      }
    }
    if (call.outputs.dbeta != nullptr) static_cast<float*>(call.outputs.dbeta)[head] = static_cast<float>(dbeta);
    if (call.outputs.dlambda == nullptr) continue;
    const float lambda = call.views() == 2 ? static_cast<const float*>(call.problem.inputs.lambda)[head] : -1.0f;
    const bool inside = lambda >= 0.0f && lambda <= 1.0f;
    static_cast<float*>(call.outputs.dlambda)[head] = inside ? static_cast<float>(dlambda) : 0.0f;
  }
}

}  // namespace

std::size_t backward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options) {
  const BackwardPlan plan(shape, options, kernel_choice());
  return BackwardShared(plan, shape, options, nullptr).bytes +
         static_cast<std::size_t>(plan.threads) * BackwardScratch(plan, options, nullptr).bytes;
}

void backward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
              const ConstTensor& d_output, const void* survivor_index, const BackwardOutputs& outputs,
              void* workspace) {
  const KernelChoice choice = kernel_choice();
  const BackwardPlan plan(shape, options, choice);
  const Problem problem{shape, options, inputs, *choice.simd};
  const BackwardShared shared(plan, shape, options, workspace);
  // The index is only read here; its class serves the writer too.
  const SurvivorIndex index(shape, options, const_cast<void*>(survivor_index));
  const Call call{problem, plan, shared, index, d_output, outputs, make_power_rule(options.power)};
  char* scratch = static_cast<char*>(workspace) + shared.bytes;
  const std::size_t scratch_bytes = BackwardScratch(plan, options, nullptr).bytes;

  order_units(call);
  compute_norms(call);
  const std::int64_t query_units = problem.heads() * plan.query_blocks;
  const std::int64_t key_units = problem.key_heads() * plan.key_blocks;
  std::sort(shared.query_order, shared.query_order + query_units, std::greater<>());
  std::sort(shared.key_order, shared.key_order + key_units, std::greater<>());

  const bool query_pass = outputs.dq[0].data != nullptr || outputs.dq[1].data != nullptr || outputs.dbeta != nullptr ||
                          outputs.dlambda != nullptr;
  const bool key_pass = outputs.dk[0].data != nullptr || outputs.dk[1].data != nullptr || outputs.dv.data != nullptr;
  const std::int64_t first_key_unit = query_pass ? query_units : 0;
  for_each_unit(options, first_key_unit + (key_pass ? key_units : 0), [&](int thread, std::int64_t unit) {
    alignas(64) char engine_state[kEngineStateBytes];
    if (plan.engine != nullptr) plan.engine->begin(engine_state);
    GradientWorker worker(call, scratch + static_cast<std::size_t>(thread) * scratch_bytes);
    if (unit < first_key_unit) {
      const auto which = static_cast<std::int64_t>(shared.query_order[unit] & 0xFFFFFFFF);
      worker.visit_queries(which / plan.query_blocks, which % plan.query_blocks);
    } else {
      const auto which = static_cast<std::int64_t>(shared.key_order[unit - first_key_unit] & 0xFFFFFFFF);
      worker.visit_keys(which / plan.key_blocks, which % plan.key_blocks);
    }
    if (plan.engine != nullptr) plan.engine->end(engine_state);
  });
  if (query_pass) reduce_parameters(call);
}

}  // namespace tda::cpu
