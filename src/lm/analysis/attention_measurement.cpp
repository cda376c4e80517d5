#include "lm/analysis/attention_measurement.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <functional>
#include <utility>

#include "lm/analysis/map_statistics.h"

namespace tda {
namespace {

std::vector<std::pair<std::string, at::Tensor>> named_views(const AttentionMaps& maps) {
  std::vector<std::pair<std::string, at::Tensor>> named = {{"effective", maps.effective}};
  if (maps.views.size() > 1) {
    for (std::size_t view = 0; view < maps.views.size(); ++view) {
      named.emplace_back("view " + std::to_string(view + 1), maps.views[view]);
    }
  }
  return named;
}

// Runs the model on `ids` (B, T) and hands the maps of every layer to `visit`; only one layer's maps exist at a time.
void visit_maps(Gpt& model, const Gpt::PreparedWeights& weights, const at::Tensor& ids,
                const std::function<void(std::int64_t layer, const AttentionMaps& maps)>& visit) {
  Gpt::ForwardOptions options;
  options.last_row_only = true;
  options.observer = [&](std::int64_t layer, const ProjectedHeads& heads, std::span<const at::Tensor> parameters) {
    visit(layer, model.mechanism().maps(heads, parameters));
  };
  model.forward(weights, ids, options);
}

// Adds weight * values (H) to row `layer` of a table.
void accumulate(HeadTable& table, std::int64_t layer, const at::Tensor& values, double weight) {
  const auto row_index = static_cast<std::size_t>(layer);
  if (table.size() <= row_index) table.resize(row_index + 1);
  std::vector<double>& row = table[row_index];
  const at::Tensor on_host = values.cpu().contiguous();
  row.resize(static_cast<std::size_t>(on_host.numel()));
  for (std::size_t head = 0; head < row.size(); ++head) {
    row[head] += weight * on_host.const_data_ptr<double>()[head];
  }
}

void accumulate(ViewStatistics& sums, std::int64_t layer, const MapStatistics& statistics, double weight) {
  accumulate(sums.sparsity, layer, statistics.sparsity, weight);
  accumulate(sums.empty_rows, layer, statistics.empty_rows, weight);
  accumulate(sums.survivors_per_row, layer, statistics.survivors_per_row, weight);
  accumulate(sums.sink_ratio, layer, statistics.sink_ratio, weight);
  accumulate(sums.effective_entropy, layer, statistics.effective_entropy, weight);
}

}  // namespace

std::vector<ViewStatistics> measure_attention(Gpt& model, const at::Tensor& ids, std::int64_t batch) {
  const at::NoGradGuard no_gradient;
  const Gpt::PreparedWeights weights = model.prepare();
  const std::int64_t windows = ids.size(0);
  std::vector<ViewStatistics> result;
  for (std::int64_t first = 0; first < windows; first += batch) {
    const at::Tensor chunk = ids.slice(0, first, std::min(first + batch, windows));
    const double weight = static_cast<double>(chunk.size(0)) / static_cast<double>(windows);
    visit_maps(model, weights, chunk, [&](std::int64_t layer, const AttentionMaps& maps) {
      const auto views = named_views(maps);
      if (result.empty()) result.resize(views.size());
      for (std::size_t view = 0; view < views.size(); ++view) {
        result[view].name = views[view].first;
        accumulate(result[view], layer, map_statistics(views[view].second), weight);
      }
    });
  }
  return result;
}

std::vector<ViewMaps> attention_maps(Gpt& model, const at::Tensor& ids) {
  const at::NoGradGuard no_gradient;
  std::vector<ViewMaps> result;
  visit_maps(model, model.prepare(), ids.unsqueeze(0), [&](std::int64_t, const AttentionMaps& maps) {
    const auto views = named_views(maps);
    if (result.empty()) result.resize(views.size());
    for (std::size_t view = 0; view < views.size(); ++view) {
      result[view].name = views[view].first;
      result[view].maps.push_back(views[view].second.squeeze(0).cpu());
    }
  });
  return result;
}

}  // namespace tda
