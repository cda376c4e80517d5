// Softpick (Zuhri et al. 2025): P_ij = max(0, e^z_ij - 1) / (sum_k |e^z_ik - 1| + eps), z = q k^T / sqrt(D), over j <=
// i. A row sums to at most 1, and a key with a negative score gets weight 0 but takes part in the denominator.
#include "lm/model/mechanisms/registry.h"
#include "lm/model/mechanisms/row_mechanism.h"
#include "lm/model/mechanisms/softpick_rows.h"

namespace tda {

std::unique_ptr<AttentionMechanism> make_softpick(const ModelConfig& config) {
  return std::make_unique<RowMechanism>(config, make_softpick_rows(config.softpick_eps));
}

}  // namespace tda
