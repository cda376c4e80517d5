// Entmax attention: P = alpha-entmax(q k^T / sqrt(D)) over j <= i, output P v. No parameters, no norm. entmax_alpha = 2
// is sparsemax; towards 1 it becomes softmax.
#include "lm/model/mechanisms/entmax_rows.h"
#include "lm/model/mechanisms/registry.h"
#include "lm/model/mechanisms/row_mechanism.h"

namespace tda {

std::unique_ptr<AttentionMechanism> make_entmax(const ModelConfig& config) {
  return std::make_unique<RowMechanism>(config, make_entmax_rows(config.entmax_alpha));
}

}  // namespace tda
