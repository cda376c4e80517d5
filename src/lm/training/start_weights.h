// Starting a run from the weights of another: `tda train RECIPE --init-from CHECKPOINT`. Only weights are taken over;
// the optimizer, the schedule and the order of windows begin anew at step 0.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "lm/data/tokenizer.h"
#include "lm/model/model_config.h"

namespace tda {

// Compares the model in `step_directory`, a step folder, with the one that is to be trained on text of `tokenizer`.
// May differ: model.context and model.rope_scaling, which a longer context changes; model.beta and model.lambda, start
// values in whose place the weights stand; model.learn_beta and model.learn_lambda. Options that the mechanism does not
// read are not compared. Returns one line for each difference, for the user. Throws Error naming the key and both
// values when anything else differs, and when the folder cannot be read.
std::vector<std::string> check_start_weights(const std::filesystem::path& step_directory, const ModelConfig& model,
                                             const Tokenizer& tokenizer);

}  // namespace tda
