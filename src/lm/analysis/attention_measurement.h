// What the attention of a model does on real text: the numbers of map_statistics.h for every layer and head, and the
// maps themselves for one sentence.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "lm/model/gpt.h"

namespace tda {

using HeadTable = std::vector<std::vector<double>>;  // [layer][head]

// The statistics of one map of every head: "effective", the weights that multiply V, and for differential mechanisms
// "view 1" and "view 2" before the subtraction.
struct ViewStatistics {
  std::string name;
  HeadTable sparsity;
  HeadTable empty_rows;
  HeadTable survivors_per_row;
  HeadTable sink_ratio;
  HeadTable effective_entropy;
};

// Means over the windows of `ids` (N, T), int64, T >= 2, computed `batch` windows at a time in the precision of the
// model; the maps themselves are fp32. Peak memory: a few times views * batch * heads * T^2 * 8 bytes.
std::vector<ViewStatistics> measure_attention(Gpt& model, const at::Tensor& ids, std::int64_t batch = 1);

// The dense maps of one sequence. maps: [layer] -> (H, T, T) fp32, 0 above the diagonal.
struct ViewMaps {
  std::string name;
  std::vector<at::Tensor> maps;
};

// ids: (T), int64.
std::vector<ViewMaps> attention_maps(Gpt& model, const at::Tensor& ids);

}  // namespace tda
