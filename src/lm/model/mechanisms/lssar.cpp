// Length-scaled softplus attention with re-weighting (Gao, Spratling 2025): q and k have unit length,
//   A = softplus(x) / sum softplus(x),  x_ij = ln(D) ln(n_i) <q_i, k_j>,  n_i the number of keys that row i sees,
//   B = max(0, n A - o_i)^p / sum max(0, n A - o_i)^p,  o_i = lssar_offset in rows of more than three keys, else 0,
// and the output is B v. With an offset of 1 a key below the average of its row gets weight 0.
#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "lm/model/mechanisms/causal_positions.h"
#include "lm/model/mechanisms/registry.h"
#include "lm/model/mechanisms/row_mechanism.h"
#include "lm/model/mechanisms/unit_vectors.h"

namespace tda {
namespace {

constexpr double kRowsWithoutOffset = 3;

// n^15 overflows fp32 from n = 371 on. Every power is therefore one of y / max y, which changes nothing: B has no
// scale.
class ReweightedSoftplusRows final : public RowMap {
 public:
  ReweightedSoftplusRows(double power, double offset) : power_(power), offset_(offset) {}

  double hidden_score() const override { return -std::numeric_limits<double>::infinity(); }

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

class Lssar final : public RowMechanism {
 public:
  explicit Lssar(const ModelConfig& config)
      : RowMechanism(config, c10::make_intrusive<ReweightedSoftplusRows>(config.lssar_power, config.lssar_offset)) {}

 protected:
  Factors score_factors(const ProjectedHeads& heads, std::span<const at::Tensor>) const override {
    const auto length = visible_keys(heads.q[0], heads.k[0]).log() * std::log(static_cast<double>(layout().head_dim));
    return {unit_vectors(heads.q[0]) * length.unsqueeze(-1), unit_vectors(heads.k[0])};
  }
};

}  // namespace

std::unique_ptr<AttentionMechanism> make_lssar(const ModelConfig& config) { return std::make_unique<Lssar>(config); }

}  // namespace tda
