// Entmax of a row of scores (Peters, Niculae, Martins 2019): a softmax whose tail is cut to exact zeros.
#pragma once

#include "lm/model/mechanisms/row_attention.h"

namespace tda {

// p_j = max(0, (alpha - 1) z_j - tau)^(1 / (alpha - 1)) with tau such that sum_j p_j = 1. alpha in (1, 2].
RowMapPointer make_entmax_rows(double alpha);

}  // namespace tda
