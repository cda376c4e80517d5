// Length-scaled softplus attention with re-weighting, of one row of scores, and its gradient (the team: entmax_row.h).
//
// A = w / sum w, w = softplus(z); B = max(0, n A - o)^p / sum max(0, n A - o)^p, o = 0 in rows of at most three keys.
// Powers are taken of y / max y, y = n A - o. The readable twin is mechanisms/lssar_rows.cpp.
#pragma once

#include "lm/model/cuda/row_arithmetic.h"

namespace tda {

class LssarRow {
 public:
  static constexpr const char* kName = "lssar";
  static constexpr int kStatistics = 3;  // sum w, the greatest y, and sum (y / greatest)^p

  // f of the formula: itself.
  template <typename F>
  auto with_formula(F&& f) const {
    return f(*this);
  }

  LssarRow(double power, double offset)
      : exponent_(static_cast<float>(power)), offset_(static_cast<float>(offset)), power_(power), slope_(power - 1) {}

  // `scores` may be a copy of the row and is overwritten; `weights` may be the same memory.
  template <typename Team>
  TDA_HOST_DEVICE void weights(Team& team, float* scores, float* weights, float* statistics) const {
    const float total = team.sum([&](int j) { return scores[j] = softplus(scores[j]); });
    const float largest = team.greatest([&](int j) { return scores[j]; });
    const Row row{static_cast<float>(team.count()), offset_of(team.count()), total,
                  largest / total * static_cast<float>(team.count()) - offset_of(team.count())};
    float sum = total;
    if (!row.is_even()) {
      sum = team.sum([&](int j) { return scores[j] = power_(row.relative(scores[j] / total)); });
    }
    team.for_each([&](int j) { weights[j] = scores[j] / sum; });
    if (team.leads()) {
      statistics[0] = total;
      statistics[1] = row.greatest;
      statistics[2] = sum;
    }
  }

  // dy = p (dB - <dB, B>) B / y; dA = n dy, or dB itself in an even row; then back through A = w / sum w and
  // w = softplus(z). Weights take the place of scores, dz that of dB.
  template <typename Team>
  TDA_HOST_DEVICE void gradients(Team& team, const float* statistics, float* scores, float* d_weights) const {
    const Row row{static_cast<float>(team.count()), offset_of(team.count()), statistics[0], statistics[1]};
    const float sum = statistics[2];
    const bool even = row.is_even();
    const auto normalized = [&](int j) { return softplus(scores[j]) / row.total; };
    if (!even) {
      const float mean = team.sum([&](int j) { return d_weights[j] * (power_(row.relative(normalized(j))) / sum); });
      const float factor = exponent_ * row.keys / (sum * row.greatest);
      team.for_each(
          [&](int j) { d_weights[j] = (d_weights[j] - mean) * slope_(row.relative(normalized(j))) * factor; });
    }
    const float mean = team.sum([&](int j) { return d_weights[j] * normalized(j); });
    team.for_each([&](int j) {
      const float score = scores[j], share = normalized(j);
      scores[j] = even ? share : power_(row.relative(share)) / sum;
      d_weights[j] = (d_weights[j] - mean) / row.total * sigmoid(score);
    });
  }

 private:
  static constexpr int kRowsWithoutOffset = 3;

  struct Row {
    float keys, offset, total, greatest;

    // max(0, y) / greatest of a key with A = share.
    TDA_HOST_DEVICE float relative(float share) const { return rectified((share * keys - offset) / greatest); }

    // All keys score alike: n A = 1, and y = 0 but for rounding. The weights are those of A.
    TDA_HOST_DEVICE bool is_even() const { return greatest <= 1.0f / (1 << 17); }
  };

  TDA_HOST_DEVICE float offset_of(int keys) const { return keys > kRowsWithoutOffset ? offset_ : 0; }

  // Beyond 40, exp(-x) is below fp32's rounding.
  TDA_HOST_DEVICE static float softplus(float x) { return x > 40 ? x : log1pf(expf(x)); }

  TDA_HOST_DEVICE static float sigmoid(float x) { return 1 / (1 + expf(-x)); }

  float exponent_, offset_;
  RectifiedPower power_, slope_;
};

}  // namespace tda
