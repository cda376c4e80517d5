#include "lm/model/mechanism_option.h"

#include <algorithm>

namespace tda {

bool MechanismOption::read_by(std::string_view mechanism) const {
  return std::find(mechanisms.begin(), mechanisms.end(), mechanism) != mechanisms.end();
}

const std::vector<MechanismOption>& mechanism_options() {
  using Config = ModelConfig;
  static const std::vector<MechanismOption> options = {
      {.key = "gate",
       .member = &Config::gate,
       .meaning = "gated_softmax: one gate a head, or one for each of its channels",
       .mechanisms = {"gated_softmax"},
       .choices = {"head", "element"}},
      {.key = "ssmax_scale",
       .member = &Config::ssmax_scale,
       .meaning = "ssmax: start value of the factor of log n",
       .mechanisms = {"ssmax"}},
      {.key = "ssmax_bias",
       .member = &Config::ssmax_bias,
       .meaning = "ssmax: learn a term beside the one in log n; its start is 0",
       .mechanisms = {"ssmax"}},
      {.key = "entmax_alpha",
       .member = &Config::entmax_alpha,
       .meaning = "entmax, asentmax: 2 is sparsemax, towards 1 it becomes softmax",
       .mechanisms = {"entmax", "asentmax"},
       .range = {.minimum = 1, .maximum = 2, .minimum_excluded = true}},
      {.key = "asentmax_bias",
       .member = &Config::asentmax_bias,
       .meaning = "asentmax: a bias in the projections to beta and gamma",
       .mechanisms = {"asentmax"}},
      {.key = "lssar_power",
       .member = &Config::lssar_power,
       .meaning = "lssar: exponent of the re-weighting",
       .mechanisms = {"lssar"},
       .range = {.minimum = 1}},
      {.key = "lssar_offset",
       .member = &Config::lssar_offset,
       .meaning =
           "lssar: keys below this many times the average of their row get weight 0 (rows of more than three keys)",
       .mechanisms = {"lssar"},
       .range = {.minimum = 0, .maximum = 1}},
      {.key = "rela_norm",
       .member = &Config::rela_norm,
       .meaning = "rela: norm of the output; rms, layer and gated_rms over all heads together, head_rms of every head",
       .mechanisms = {"rela"},
       .choices = {"rms", "layer", "gated_rms", "head_rms"}},
      {.key = "dex_annealing_steps",
       .member = &Config::dex_annealing_steps,
       .meaning = "dex: steps over which the fixed start of lambda gives way to the learned one",
       .mechanisms = {"dex"},
       .range = {.minimum = 1}},
      {.key = "softpick_eps",
       .member = &Config::softpick_eps,
       .meaning = "softpick: added to the denominator",
       .mechanisms = {"softpick"},
       .range = {.minimum = 0}},
  };
  return options;
}

}  // namespace tda
