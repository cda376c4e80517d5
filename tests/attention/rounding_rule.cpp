#include "rounding_rule.h"

#include <algorithm>
#include <cmath>

#include "attention/reference/element_conversion.h"

namespace tda::test {

testing::AssertionResult follows_rule(DataType type, const std::vector<double>& ours,
                                      const std::vector<double>& reference, const std::vector<double>& naive) {
  if (naive.size() != reference.size()) return testing::AssertionFailure() << "the naive twin has another size";
  double naive_error = 0.0;
  for (std::size_t i = 0; i < reference.size(); ++i) {
    if (!std::isnan(reference[i])) naive_error = std::max(naive_error, std::fabs(naive[i] - reference[i]));
  }
  return follows_rule(type, ours, reference, naive_error);
}

testing::AssertionResult follows_rule(DataType type, const std::vector<double>& ours,
                                      const std::vector<double>& reference, double naive_error) {
  if (ours.size() != reference.size()) {
    return testing::AssertionFailure() << ours.size() << " elements, expected " << reference.size();
  }
  if (!std::isfinite(naive_error)) return testing::AssertionFailure() << "the naive twin overflows: nothing is tested";
  double floor = 0.0;
  for (double x : reference) {
    if (std::isnan(x)) continue;
    const double rounded = round_to(type, x);
    floor = std::max(floor, std::fabs(round_to(type, round_to(type, rounded + 0.3) - 0.3) - rounded));
  }
  const double tolerance = 2.0 * naive_error + 2.0 * floor;
  double worst = 0.0;
  std::size_t where = 0;
  for (std::size_t i = 0; i < reference.size(); ++i) {
    if (std::isnan(ours[i]) != std::isnan(reference[i])) {
      return testing::AssertionFailure() << "element " << i << " is " << ours[i] << ", expected " << reference[i];
    }
    if (std::isnan(reference[i])) continue;
    const double error = std::fabs(ours[i] - reference[i]);
    if (error > worst || std::isnan(error)) {
      worst = error;
      where = i;
    }
  }
  if (worst <= tolerance) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "element " << where << " of " << reference.size() << " is " << ours[where]
                                     << ", expected " << reference[where] << ": off by " << worst << ", allowed "
                                     << tolerance << " (naive " << naive_error << ", floor " << 2.0 * floor << ")";
}

void expect_follows_rule(const AttentionCase& test_case, const Results& ours, const Results& reference,
                         const NaiveError& naive) {
  const DataType type = test_case.options.data_type;
  EXPECT_TRUE(follows_rule(type, ours.output, reference.output, naive.output)) << "output";
  if (ours.dv.empty()) return;
  for (std::size_t view = 0; view < test_case.q.size(); ++view) {
    EXPECT_TRUE(follows_rule(type, ours.dq[view], reference.dq[view], naive.dq[view])) << "dq, view " << view;
    EXPECT_TRUE(follows_rule(type, ours.dk[view], reference.dk[view], naive.dk[view])) << "dk, view " << view;
  }
  EXPECT_TRUE(follows_rule(type, ours.dv, reference.dv, naive.dv)) << "dv";
  const DataType parameter_type = test_case.parameter_type();
  EXPECT_TRUE(follows_rule(parameter_type, ours.dbeta, reference.dbeta, naive.dbeta)) << "dbeta";
  if (test_case.options.views == 1) return;
  EXPECT_TRUE(follows_rule(parameter_type, ours.dlambda, reference.dlambda, naive.dlambda)) << "dlambda";
}

double survival_band(DataType type, std::int64_t head_dim) {
  double at_64 = 0.0, unit = 0.0;  // unit: largest relative rounding error
  switch (type) {
    case DataType::kBFloat16:
      at_64 = 1.5e-3;
      unit = std::ldexp(1.0, -8);
      break;
    case DataType::kFloat16:
      at_64 = 2e-4;
      unit = std::ldexp(1.0, -11);
      break;
    case DataType::kFloat32:
      return 1e-5;
    case DataType::kFloat64:
      return 1e-12;
  }
  return std::min(3.0 * unit, at_64 * std::max(1.0, std::sqrt(64.0 / static_cast<double>(head_dim))));
}

}  // namespace tda::test
