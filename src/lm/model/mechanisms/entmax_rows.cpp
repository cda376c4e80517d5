#include "lm/model/mechanisms/entmax_rows.h"

#include <ATen/ATen.h>

#include <limits>

namespace tda {
namespace {

// From its start Newton's method needs 13 steps for 16384 keys and alpha = 1.5 in fp32; more only for keys without end.
constexpr int kMostSteps = 40;
// A device is not asked whether it is done, since that would stall it.
constexpr int kStepsOnDevice = 20;

class EntmaxRows final : public RowMap {
 public:
  explicit EntmaxRows(double alpha) : alpha_(alpha), exponent_(1 / (alpha - 1)) {}

  double hidden_score() const override { return -std::numeric_limits<double>::infinity(); }
  std::optional<RowFormula> formula() const override { return EntmaxRow{alpha_}; }

  // The greatest score of the row, and the threshold below it: tau = (alpha - 1) max + threshold.
  at::Tensor statistics(const RowBlock& block) const override {
    const auto greatest = block.scores.amax(-1, true);
    return at::cat({greatest, threshold((block.scores - greatest).mul_(alpha_ - 1))}, -1);
  }

  at::Tensor weights(const RowBlock& block, const at::Tensor& statistics) const override {
    return rectified_power(excess(block.scores, statistics), exponent_);
  }

  // dz = u (dp - <u, dp> / sum u) with u = p^(2 - alpha) = excess^(1/(alpha - 1) - 1); the inner derivative alpha - 1
  // cancels against the exponent.
  at::Tensor score_gradient(const RowBlock& block, const at::Tensor& statistics, const at::Tensor&,
                            const at::Tensor& d_weights) const override {
    const auto slope = rectified_power(excess(block.scores, statistics), exponent_ - 1);
    const auto mean = (slope * d_weights).sum(-1, true) / slope.sum(-1, true);
    return (d_weights - mean).mul_(slope);
  }

 private:
  at::Tensor excess(const at::Tensor& scores, const at::Tensor& statistics) const {
    return (scores - statistics.narrow(-1, 0, 1)).mul_(alpha_ - 1).sub_(statistics.narrow(-1, 1, 1)).clamp_min_(0);
  }

  // The t with sum_j max(0, y_j - t)^e = 1 for rows with maximum 0. Newton's method from t = -1, where the sum is at
  // least 1: the sum is convex and falls in t for e >= 1, so no step goes too far and none needs a bracket.
  at::Tensor threshold(const at::Tensor& y) const {
    auto t = at::full_like(y.narrow(-1, 0, 1), -1);
    const double rounding = y.scalar_type() == at::kDouble ? 0x1p-52 : 0x1p-23;
    for (int step = 0; step < (y.is_cpu() ? kMostSteps : kStepsOnDevice); ++step) {
      const auto r = (y - t).clamp_min_(0);
      const auto slope = rectified_power(r, exponent_ - 1);
      const auto move = ((slope * r).sum(-1, true) - 1) / (slope.sum(-1, true) * exponent_);
      // Row by row, so that a row does not depend on how long others take.
      move.masked_fill_(move.le(t * -rounding), 0);
      t += move;
      if (y.is_cpu() && !move.any().item<bool>()) break;
    }
    return t;
  }

  double alpha_, exponent_;
};

}  // namespace

RowMapPointer make_entmax_rows(double alpha) { return c10::make_intrusive<EntmaxRows>(alpha); }

}  // namespace tda
