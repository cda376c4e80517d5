// Softpick of one row of scores and its gradient (the team: entmax_row.h).
//
// p_j = max(0, e^z_j - 1) / (sum_k |e^z_k - 1| + eps), numerator and sum multiplied by e^-m, m = max(0, max z). The
// readable twin is mechanisms/softpick_rows.cpp.
#pragma once

#include <float.h>

#include "lm/model/cuda/row_arithmetic.h"

namespace tda {

class SoftpickRow {
 public:
  static constexpr const char* kName = "softpick";
  static constexpr int kStatistics = 2;  // m and the denominator

  // f of the formula: itself.
  template <typename F>
  auto with_formula(F&& f) const {
    return f(*this);
  }

  explicit SoftpickRow(double eps) : eps_(static_cast<float>(eps)) {}

  // `scores` may be a copy of the row and is overwritten; `weights` may be the same memory.
  template <typename Team>
  TDA_HOST_DEVICE void weights(Team& team, float* scores, float* weights, float* statistics) const {
    const float greatest = rectified(team.greatest([&](int j) { return scores[j]; }));
    const float sum = team.sum([&](int j) {
      const float size = magnitude(scores[j], greatest);
      scores[j] = scores[j] > 0 ? size : -size;
      return size;
    });
    const float denominator = not_below_least(sum + eps_);
    team.for_each([&](int j) { weights[j] = rectified(scores[j]) / denominator; });
    if (team.leads()) {
      statistics[0] = greatest;
      statistics[1] = denominator;
    }
  }

  // dz = E (dp - <dp, p>) where z > 0 and E <dp, p> elsewhere, E = e^z / denominator. Weights take the place of scores,
  // dz that of dp.
  template <typename Team>
  TDA_HOST_DEVICE void gradients(Team& team, const float* statistics, float* scores, float* d_weights) const {
    const float greatest = statistics[0], denominator = statistics[1];
    const auto weight = [&](float score) {
      const float size = magnitude(score, greatest);
      return rectified(score > 0 ? size : -size) / denominator;
    };
    const float mean = team.sum([&](int j) { return d_weights[j] * weight(scores[j]); });
    team.for_each([&](int j) {
      const float score = scores[j];
      scores[j] = weight(score);
      d_weights[j] = (score > 0 ? d_weights[j] - mean : mean) * (expf(score - greatest) / denominator);
    });
  }

 private:
  // |e^z - 1| e^-m, without cancellation near 0.
  TDA_HOST_DEVICE static float magnitude(float score, float greatest) {
    return -expm1f(-fabsf(score)) * expf(rectified(score) - greatest);
  }

  // A row of zeros has weights 0 and not 0/0.
  TDA_HOST_DEVICE static float not_below_least(float x) { return x < FLT_MIN ? FLT_MIN : x; }

  float eps_;
};

}  // namespace tda
