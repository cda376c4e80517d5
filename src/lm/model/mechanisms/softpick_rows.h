// Softpick of a row of scores (Zuhri et al. 2025): a softmax without its maximum, so that a row may be empty.
#pragma once

#include "lm/model/mechanisms/row_attention.h"

namespace tda {

// p_j = max(0, e^z_j - 1) / (sum_k |e^z_k - 1| + eps).
RowMapPointer make_softpick_rows(double eps);

}  // namespace tda
