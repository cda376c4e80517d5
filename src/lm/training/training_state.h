// What a run must remember, besides weights and moments, to go on bit for bit: state.json of a step folder.
//
// There is no state of a random number generator in it: start weights are a function of the seed, windows of (seed,
// epoch, index), samples of (seed, step).
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>

#include "lm/data/dataset.h"

namespace tda {

struct TrainingState {
  std::int64_t step = 0;         // updates done
  std::int64_t tokens = 0;       // training tokens seen
  std::int64_t next_window = 0;  // global index of the next training window
  double seconds = 0.0;          // wall-clock time spent, over all processes of the run one after the other
  std::int64_t metrics_bytes = 0;
  std::int64_t samples_bytes = 0;
  std::string start_weights;  // the step folder that step 0 took its weights from; empty: random ones
};

// The dataset is described in the file as well, to be recognized wherever it lies later.
void save_training_state(const std::filesystem::path& file, const TrainingState& state,
                         const DatasetDescription& dataset);

// Throws Error naming file and key when something is missing or `dataset` is another one than the run began with.
TrainingState load_training_state(const std::filesystem::path& file, const DatasetDescription& dataset);

}  // namespace tda
