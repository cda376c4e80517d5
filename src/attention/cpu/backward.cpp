// The backward pass over the survivor index: divides the key heads among the threads (backward_plan.h) and walks their
// live tiles (gradient_walk.h). Empty regions cost a look at the index.
#include <bit>

#include "attention/cpu/cpu_attention.h"
#include "attention/cpu/gradient_walk.h"
#include "attention/cpu/parallel.h"

namespace tda::cpu {
namespace {

// Unit numbers: a fused key head, else the query blocks of a query head or the key blocks of a key head in split form.
struct UnitNumbers {
  std::int64_t first_query_unit, first_key_unit;
  explicit UnitNumbers(const GradientCall& call)
      : first_query_unit(call.problem.key_heads()),
        first_key_unit(first_query_unit + call.problem.heads() * call.plan.query_units) {}
};

constexpr std::uint64_t kNumberMask = 0xFFFFFFFF;

std::uint64_t entry(std::uint64_t weight, std::int64_t number) {
  return std::min(weight, kNumberMask) << 32 | static_cast<std::uint64_t>(number);
}

std::int64_t first_head_of(const Problem& problem, std::int64_t key_head) {
  const AttentionShape& shape = problem.shape;
  return key_head / shape.key_heads * shape.query_heads + key_head % shape.key_heads * problem.group();
}

GradientWork work_of(const GradientCall& call, std::int64_t number) {
  const Problem& problem = call.problem;
  const BackwardPlan& plan = call.plan;
  const UnitNumbers numbers(call);
  GradientWork work;
  work.last_query_block = plan.query_blocks;
  work.last_key_block = plan.key_blocks;
  if (number >= numbers.first_query_unit && number < numbers.first_key_unit) {
    const std::int64_t unit = number - numbers.first_query_unit;
    work.first_head = unit / plan.query_units;
    work.head_count = 1;
    work.key_head = problem.key_head_of(work.first_head);
    work.first_query_block = unit % plan.query_units * plan.split_blocks;
    work.last_query_block = std::min(work.first_query_block + plan.split_blocks, plan.query_blocks);
    work.queries = true;
    return work;
  }
  work.key_head = number;
  work.keys = call.wants_keys();
  work.queries = call.wants_queries();
  if (number >= numbers.first_key_unit) {
    const std::int64_t unit = number - numbers.first_key_unit;
    work.key_head = unit / plan.key_units;
    work.first_key_block = unit % plan.key_units * plan.split_blocks;
    work.last_key_block = std::min(work.first_key_block + plan.split_blocks, plan.key_blocks);
    work.queries = false;
  }
  work.first_head = first_head_of(problem, work.key_head);
  work.head_count = problem.group();
  return work;
}

// Live slices of the tiles of a unit.
std::uint64_t live_slices(const GradientCall& call, const GradientWork& work) {
  std::uint64_t live = 0;
  const std::int64_t first_bit = work.first_key_block * kGroups, last_bit = work.last_key_block * kGroups;
  for (int v = 0; v < call.views(); ++v) {
    for (std::int64_t head = work.first_head; head < work.first_head + work.head_count; ++head) {
      for (std::int64_t block = work.first_query_block; block < work.last_query_block; ++block) {
        const std::uint64_t* row = call.index.row(v, head, block);
        for (std::int64_t word = first_bit / 64; word * 64 < last_bit && word < call.index.row_words(); ++word) {
          std::uint64_t bits = row[word];
          if (word * 64 < first_bit) bits &= ~std::uint64_t{0} << (first_bit - word * 64);
          if (last_bit < (word + 1) * 64) bits &= (std::uint64_t{1} << (last_bit - word * 64)) - 1;
          live += static_cast<std::uint64_t>(std::popcount(bits));
        }
      }
    }
  }
  return live;
}

// Thresholds of all rows and the weight of every key head.
void survey(const GradientCall& call) {
  const std::int64_t length = call.problem.shape.query_length;
  constexpr std::int64_t kScaleRows = 1024;
  const std::int64_t scale_units = divide_up(length, kScaleRows);
  for_each_unit(call.problem.options, scale_units + call.problem.key_heads(), [&](int, std::int64_t unit) {
    if (unit < scale_units) {
      const std::int64_t first = unit * kScaleRows;
      threshold_scales(call.problem, first, std::min(kScaleRows, length - first), call.shared.threshold_scale + first);
      return;
    }
    const std::int64_t key_head = unit - scale_units;
    // An empty head still has its gradients to write.
    const auto rows = static_cast<std::uint64_t>(call.problem.group() * call.plan.query_blocks + call.plan.key_blocks);
    call.shared.head_order[key_head] = entry(live_slices(call, work_of(call, key_head)) + rows, key_head);
  });
}

// Fills call.shared.units, heaviest first, and returns their number. A head is fused unless it would keep its thread
// busy while others have nothing left to do.
std::int64_t divide_work(const GradientCall& call) {
  const BackwardShared& shared = call.shared;
  const BackwardPlan& plan = call.plan;
  const UnitNumbers numbers(call);
  const std::int64_t key_heads = call.problem.key_heads();
  std::sort(shared.head_order, shared.head_order + key_heads, std::greater<>());
  std::uint64_t total = 0;
  for (std::int64_t i = 0; i < key_heads; ++i) total += shared.head_order[i] >> 32;
  // Splitting costs up to two fifths more work.
  const std::uint64_t fair = total / static_cast<std::uint64_t>(plan.threads), limit = fair + fair / 5;
  std::fill_n(shared.loads, plan.threads, std::uint64_t{0});
  std::int64_t units = 0;
  const auto add = [&](std::int64_t number) {
    shared.units[units++] = entry(live_slices(call, work_of(call, number)), number);
  };
  for (std::int64_t i = 0; i < key_heads; ++i) {
    const std::uint64_t weight = shared.head_order[i] >> 32;
    const auto key_head = static_cast<std::int64_t>(shared.head_order[i] & kNumberMask);
    std::uint64_t* least = std::min_element(shared.loads, shared.loads + plan.threads);
    if (plan.may_fuse && (plan.threads == 1 || *least + weight <= limit)) {
      *least += weight;
      shared.units[units++] = entry(weight, key_head);
      continue;
    }
    const std::int64_t first_head = first_head_of(call.problem, key_head);
    for (std::int64_t unit = first_head * plan.query_units;
         call.wants_queries() && unit < (first_head + call.problem.group()) * plan.query_units; ++unit) {
      add(numbers.first_query_unit + unit);
    }
    for (std::int64_t unit = key_head * plan.key_units; call.wants_keys() && unit < (key_head + 1) * plan.key_units;
         ++unit) {
      add(numbers.first_key_unit + unit);
    }
  }
  std::sort(shared.units, shared.units + units, std::greater<>());
  return units;
}

// dbeta and dlambda from the shares of the query blocks, in a fixed order. lambda's gradient passes on [0, 1] only.
void reduce_parameters(const GradientCall& call) {
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
  const GradientCall call{problem, plan, shared, index, d_output, outputs, make_power_rule(options.power)};
  char* scratch = static_cast<char*>(workspace) + shared.bytes;
  const std::size_t scratch_bytes = BackwardScratch(plan, options, nullptr).bytes;

  survey(call);
  const std::int64_t units = divide_work(call);
  for_each_unit(options, units, [&](int thread, std::int64_t unit) {
    alignas(64) char engine_state[kEngineStateBytes];
    if (plan.engine != nullptr) plan.engine->begin(engine_state);
    GradientWalk walk(call, scratch + static_cast<std::size_t>(thread) * scratch_bytes);
    walk.run(work_of(call, static_cast<std::int64_t>(shared.units[unit] & kNumberMask)));
    if (plan.engine != nullptr) plan.engine->end(engine_state);
  });
  if (call.wants_queries()) reduce_parameters(call);
}

}  // namespace tda::cpu
