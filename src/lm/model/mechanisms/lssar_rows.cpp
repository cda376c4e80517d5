#include "lm/model/mechanisms/lssar_rows.h"

#include <ATen/ATen.h>

#include <limits>

namespace tda {
namespace {

constexpr double kRowsWithoutOffset = 3;

// n^15 overflows fp32 from n = 371 on. Every power is therefore one of y / max y, which changes nothing: B has no
// scale.
class ReweightedSoftplusRows final : public RowMap {
 public:
  ReweightedSoftplusRows(double power, double offset) : power_(power), offset_(offset) {}

  double hidden_score() const override { return -std::numeric_limits<double>::infinity(); }
  std::optional<RowFormula> formula() const override { return LssarRow(power_, offset_); }

  // sum softplus(x), the greatest y = n A - o, and sum (y / greatest)^p.
  at::Tensor statistics(const RowBlock& block) const override {
    const auto w = softplus(block.scores);
    const auto total = w.sum(-1, true);
    const auto greatest = w.amax(-1, true) / total * block.visible - offset(block);
    const auto sum = rectified_power(relative(block, w / total, greatest), power_).sum(-1, true);
    return at::cat({total, greatest, sum}, -1);
  }

  at::Tensor weights(const RowBlock& block, const at::Tensor& statistics) const override {
    const auto [total, greatest, sum] = unpack(statistics);
    const auto normalized = softplus(block.scores) / total;
    const auto reweighted = rectified_power(relative(block, normalized, greatest), power_) / sum;
    return at::where(is_even(greatest), normalized, reweighted);
  }

  // dy = p (dB - <dB, B>) B / y; dA = n dy, or dB itself in an even row; then back through A = w / sum w and
  // w = softplus(x).
  at::Tensor score_gradient(const RowBlock& block, const at::Tensor& statistics, const at::Tensor& weights,
                            const at::Tensor& d_weights) const override {
    const auto [total, greatest, sum] = unpack(statistics);
    const auto normalized = softplus(block.scores) / total;
    const auto relative_power = rectified_power(relative(block, normalized, greatest), power_ - 1);
    const auto mean = (d_weights * weights).sum(-1, true);
    const auto d_reweighted = (d_weights - mean).mul_(relative_power).mul_(power_ * block.visible / (sum * greatest));
    const auto d_normalized = at::where(is_even(greatest), d_weights, d_reweighted);
    const auto d_softplus = (d_normalized - (d_normalized * normalized).sum(-1, true)).div_(total);
    return d_softplus * block.scores.sigmoid();
  }

 private:
  struct Statistics {
    at::Tensor total, greatest, sum;
  };
  static Statistics unpack(const at::Tensor& statistics) {
    return {statistics.narrow(-1, 0, 1), statistics.narrow(-1, 1, 1), statistics.narrow(-1, 2, 1)};
  }

  // Exact: at::softplus is linear only above its threshold, where exp(-x) is below fp64's rounding.
  static at::Tensor softplus(const at::Tensor& x) { return at::softplus(x, 1, 40); }

  at::Tensor offset(const RowBlock& block) const {  // (R, 1)
    return block.visible.gt(kRowsWithoutOffset).to(block.scores.scalar_type()) * offset_;
  }

  // max(0, y) / greatest, of A.
  at::Tensor relative(const RowBlock& block, const at::Tensor& normalized, const at::Tensor& greatest) const {
    return (normalized * block.visible).sub_(offset(block)).div_(greatest).clamp_min_(0);
  }

  // A row whose keys all score alike has n A = 1, and y = 0 but for rounding: its weights are those of A.
  static at::Tensor is_even(const at::Tensor& greatest) {
    return greatest.le(greatest.scalar_type() == at::kDouble ? 0x1p-46 : 0x1p-17);
  }

  double power_, offset_;
};

}  // namespace

RowMapPointer make_lssar_rows(double power, double offset) {
  return c10::make_intrusive<ReweightedSoftplusRows>(power, offset);
}

}  // namespace tda
