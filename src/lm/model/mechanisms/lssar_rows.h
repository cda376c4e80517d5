// Length-scaled softplus attention with re-weighting, of a row of scores (Gao, Spratling 2025).
#pragma once

#include "lm/model/mechanisms/row_attention.h"

namespace tda {

// B = max(0, n A - o)^power / sum max(0, n A - o)^power with A = softplus(z) / sum softplus(z), n the number of keys
// that the row sees, o = offset in rows of more than three keys, else 0.
RowMapPointer make_lssar_rows(double power, double offset);

}  // namespace tda
