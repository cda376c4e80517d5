// Entmax of one row of scores and its gradient, for whoever shares the row: a team (row_team.cuh) knows how many keys
// the row sees, hands each key to one of its threads, and adds up over all keys.
//
// p_j = max(0, (alpha - 1) z_j - tau)^(1 / (alpha - 1)) with tau such that sum_j p_j = 1. The readable twin is
// mechanisms/entmax_rows.cpp.
#pragma once

#include "lm/model/cuda/row_arithmetic.h"

namespace tda {

// Weight: the power 1 / (alpha - 1). Slope: one less.
template <typename Weight, typename Slope>
class EntmaxFormula {
 public:
  static constexpr int kStatistics =
      2;  // the greatest score, and the threshold: tau = (alpha - 1) greatest + threshold

  explicit EntmaxFormula(double alpha)
      : scale_(static_cast<float>(alpha - 1)),
        exponent_(static_cast<float>(1 / (alpha - 1))),
        weight_(1 / (alpha - 1)),
        slope_(1 / (alpha - 1) - 1) {}

  // `scores` may be a copy of the row and is overwritten; `weights` may be the same memory.
  template <typename Team>
  TDA_HOST_DEVICE void weights(Team& team, float* scores, float* weights, float* statistics) const {
    const float greatest = team.greatest([&](int j) { return scores[j]; });
    team.for_each([&](int j) { scores[j] = shifted(scores[j], greatest); });
    const float t = threshold(team, scores);
    team.for_each([&](int j) { weights[j] = weight_(rectified(scores[j] - t)); });
    if (team.leads()) {
      statistics[0] = greatest;
      statistics[1] = t;
    }
  }

  // dz = u (dp - <u, dp> / sum u) with u = p^(2 - alpha). Weights take the place of scores, dz that of dp.
  template <typename Team>
  TDA_HOST_DEVICE void gradients(Team& team, const float* statistics, float* scores, float* d_weights) const {
    const float greatest = statistics[0], t = statistics[1];
    const Pair sums = team.sum([&](int j) {
      const float slope = slope_(rectified(shifted(scores[j], greatest) - t));
      return Pair{slope * d_weights[j], slope};
    });
    const float mean = sums.first / sums.second;
    team.for_each([&](int j) {
      const float excess = rectified(shifted(scores[j], greatest) - t);
      scores[j] = weight_(excess);
      d_weights[j] = (d_weights[j] - mean) * slope_(excess);
    });
  }

 private:
  static constexpr int kMostSteps = 40;  // 13 are enough for 16384 keys and alpha = 1.5

  TDA_HOST_DEVICE float shifted(float score, float greatest) const { return (score - greatest) * scale_; }

  // The t with sum_j max(0, y_j - t)^exponent = 1. Newton's method from t = -1, where the sum is at least 1: the sum is
  // convex and falls in t, so no step goes too far and none needs a bracket. It ends when t stands still.
  template <typename Team>
  TDA_HOST_DEVICE float threshold(Team& team, const float* y) const {
    constexpr float kRounding = 1.0f / (1 << 23);
    float t = -1;
    for (int step = 0; step < kMostSteps; ++step) {
      const Pair sums = team.sum([&](int j) {
        const float excess = rectified(y[j] - t), slope = slope_(excess);
        return Pair{slope * excess, slope};
      });
      const float move = (sums.first - 1) / (sums.second * exponent_);
      if (move <= t * -kRounding) break;
      t += move;
      if (t != t) break;  // a NaN in the row
    }
    return t;
  }

  float scale_, exponent_;
  Weight weight_;
  Slope slope_;
};

struct EntmaxRow {
  static constexpr const char* kName = "entmax";
  static constexpr int kStatistics = 2;

  double alpha;

  // f of the formula of this alpha: the usual two have powers of their own.
  template <typename F>
  auto with_formula(F&& f) const {
    if (alpha == 1.5) return f(EntmaxFormula<WholePower<2>, WholePower<1>>(alpha));
    if (alpha == 2) return f(EntmaxFormula<WholePower<1>, WholePower<0>>(alpha));
    return f(EntmaxFormula<RectifiedPower, RectifiedPower>(alpha));
  }
};

}  // namespace tda
