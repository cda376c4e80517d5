// Length-scaled softplus attention with re-weighting (Gao, Spratling 2025): q and k have unit length,
//   A = softplus(x) / sum softplus(x),  x_ij = ln(D) ln(n_i) <q_i, k_j>,  n_i the number of keys that row i sees,
//   B = max(0, n A - o_i)^p / sum max(0, n A - o_i)^p,  o_i = lssar_offset in rows of more than three keys, else 0,
// and the output is B v. With an offset of 1 a key below the average of its row gets weight 0.
#include <ATen/ATen.h>

#include <cmath>

#include "lm/model/mechanisms/causal_positions.h"
#include "lm/model/mechanisms/lssar_rows.h"
#include "lm/model/mechanisms/registry.h"
#include "lm/model/mechanisms/row_mechanism.h"
#include "lm/model/mechanisms/unit_vectors.h"

namespace tda {
namespace {

class Lssar final : public RowMechanism {
 public:
  explicit Lssar(const ModelConfig& config)
      : RowMechanism(config, make_lssar_rows(config.lssar_power, config.lssar_offset)) {}

 protected:
  Factors score_factors(const ProjectedHeads& heads, std::span<const at::Tensor>) const override {
    const auto length = visible_keys(heads.q[0], heads.k[0]).log() * std::log(static_cast<double>(layout().head_dim));
    return {unit_vectors(heads.q[0]) * length.unsqueeze(-1), unit_vectors(heads.k[0])};
  }
};

}  // namespace

std::unique_ptr<AttentionMechanism> make_lssar(const ModelConfig& config) { return std::make_unique<Lssar>(config); }

}  // namespace tda
