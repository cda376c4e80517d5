// The maps of rows that have a CUDA kernel, as the kernel is given them.
#pragma once

#include <variant>

#include "lm/model/cuda/entmax_row.h"
#include "lm/model/cuda/lssar_row.h"
#include "lm/model/cuda/softpick_row.h"

namespace tda {

using RowFormula = std::variant<EntmaxRow, LssarRow, SoftpickRow>;

}  // namespace tda
