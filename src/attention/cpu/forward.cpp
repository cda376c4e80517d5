// The forward pass: one walk over the visible pairs that finds the survivors, weighs them and adds up their values.
//
// Per 64 queries x 256 keys: (1) find which 16 x 16 sub-tiles can hold a survivor, with the bf16 engine where there is
// one; (2) compute the exact weights there; (3) add weight * value, survivor by survivor or, where they are many, as a
// matrix product. Empty regions cost step 1 only.
#include "attention/cpu/cpu_attention.h"
#include "attention/cpu/forward_unit.h"
#include "attention/cpu/parallel.h"

namespace tda::cpu {

std::size_t survivor_index_bytes(const AttentionShape& shape, const AttentionOptions& options) {
  return SurvivorIndex(shape, options, nullptr).bytes();
}

std::size_t forward_workspace_bytes(const AttentionShape& shape, const AttentionOptions& options) {
  const ForwardPlan plan(shape, options, kernel_choice());
  return ForwardShared(shape, options, nullptr).bytes +
         static_cast<std::size_t>(plan.threads) * ForwardScratch(plan, options, nullptr).bytes;
}

void forward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
             const ForwardOutputs& outputs, void* workspace) {
  const KernelChoice choice = kernel_choice();
  const ForwardPlan plan(shape, options, choice);
  const Problem problem{shape, options, inputs, *choice.simd};
  const ForwardShared shared(shape, options, workspace);
  char* scratch = static_cast<char*>(workspace) + shared.bytes;
  const std::size_t scratch_bytes = ForwardScratch(plan, options, nullptr).bytes;

  constexpr std::int64_t kNormRows = 1024;
  const std::int64_t parts = divide_up(shape.key_length, kNormRows);
  const std::int64_t norm_units = options.views * problem.key_heads() * parts;
  const std::int64_t scale_units = divide_up(shape.query_length, kNormRows);
  for_each_unit(options, norm_units + scale_units, [&](int, std::int64_t unit) {
    if (unit >= norm_units) {
      const std::int64_t first = (unit - norm_units) * kNormRows;
      threshold_scales(problem, first, std::min(kNormRows, shape.query_length - first), shared.threshold_scale + first);
      return;
    }
    const int view = static_cast<int>(unit / (problem.key_heads() * parts));
    const std::int64_t key_head = unit / parts % problem.key_heads(), first = unit % parts * kNormRows;
    problem.simd.inverse_norms(problem.keys(view, key_head, first),
                               static_cast<int>(std::min(kNormRows, shape.key_length - first)), plan.head_dim,
                               options.normalize, shared.key_inverse[view] + key_head * shape.key_length + first,
                               shared.key_low[view] + key_head * shape.key_length + first);
  });

  struct Thread {
    alignas(64) char engine_state[kEngineStateBytes];
  };
  const bool engine = plan.engine_scores || plan.screening;
  for_each_unit(options, plan.units, [&](int thread, std::int64_t unit) {
    Thread state;
    if (engine) plan.engine->begin(state.engine_state);
    ForwardUnit worker(problem, plan, shared, outputs, scratch + static_cast<std::size_t>(thread) * scratch_bytes);
    worker.run(unit);
    if (engine) plan.engine->end(state.engine_state);
  });
}

}  // namespace tda::cpu
