#include "lm/model/mechanisms/softpick_rows.h"

#include <ATen/ATen.h>

#include <limits>

namespace tda {
namespace {

// Numerator and denominator are multiplied by e^-m, m = max(0, max z), so that nothing overflows. eps is added behind
// that factor, as in the published code; there m may be negative, and e^-m overflow.
class SoftpickRows final : public RowMap {
 public:
  explicit SoftpickRows(double eps) : eps_(eps) {}

  // e^0 - 1 = 0: no weight and no part in the denominator.
  double hidden_score() const override { return 0; }
  std::optional<RowFormula> formula() const override { return SoftpickRow(eps_); }

  // m and the denominator.
  at::Tensor statistics(const RowBlock& block) const override {
    const auto greatest = block.scores.amax(-1, true).clamp_min_(0);
    const auto sum = magnitude(block.scores, greatest).sum(-1, true);
    // A row of zeros has weights 0 and not 0/0.
    return at::cat({greatest, (sum + eps_).clamp_min_(std::numeric_limits<float>::min())}, -1);
  }

  at::Tensor weights(const RowBlock& block, const at::Tensor& statistics) const override {
    const auto [greatest, denominator] = unpack(statistics);
    return magnitude(block.scores, greatest).mul_(block.scores.gt(0)).div_(denominator);
  }

  // dz = E (dp - <dp, p>) where z > 0 and E <dp, p> elsewhere, E = e^z / denominator: a key without weight still has a
  // gradient, since it dilutes the others.
  at::Tensor score_gradient(const RowBlock& block, const at::Tensor& statistics, const at::Tensor& weights,
                            const at::Tensor& d_weights) const override {
    const auto [greatest, denominator] = unpack(statistics);
    const auto exponential = (block.scores - greatest).exp_().div_(denominator);
    const auto mean = (d_weights * weights).sum(-1, true);
    return at::where(block.scores.gt(0), d_weights - mean, mean).mul_(exponential);
  }

 private:
  struct Statistics {
    at::Tensor greatest, denominator;
  };
  static Statistics unpack(const at::Tensor& statistics) {
    return {statistics.narrow(-1, 0, 1), statistics.narrow(-1, 1, 1)};
  }

  // |e^z - 1| e^-m = -expm1(-|z|) e^(max(z, 0) - m), without cancellation near 0.
  static at::Tensor magnitude(const at::Tensor& scores, const at::Tensor& greatest) {
    return scores.abs().neg_().expm1_().neg_().mul_((scores.clamp_min(0).sub_(greatest)).exp_());
  }

  double eps_;
};

}  // namespace

RowMapPointer make_softpick_rows(double eps) { return c10::make_intrusive<SoftpickRows>(eps); }

}  // namespace tda
