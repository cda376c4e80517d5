#include "survivor_rule.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/reference/reference_attention.h"
#include "rounding_rule.h"

namespace tda::test {

void expect_survivors(const AttentionCase& test_case, const std::vector<std::int32_t>& survivors) {
  const AttentionShape& s = test_case.shape;
  const AttentionCase wide = test_case.in_double();
  const CaseInputs inputs(wide);
  const double band = survival_band(test_case.options.data_type, s.head_dim);
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t h = 0; h < s.query_heads; ++h) {
      std::vector<std::vector<double>> scores;
      for (int view = 0; view < test_case.options.views; ++view) {
        scores.push_back(reference_scores(s, wide.options, inputs.get(), view, b, h));
      }
      for (std::int64_t i = 0; i < s.query_length; ++i) {
        const double tau = threshold(test_case, h, i);
        int certain = 0, possible = 0;
        for (std::int64_t j = 0; j < s.key_length; ++j) {
          double best = -std::numeric_limits<double>::infinity();
          for (const auto& view : scores) {
            const double score = view[static_cast<std::size_t>(i * s.key_length + j)];
            best = std::isnan(score) ? std::numeric_limits<double>::infinity() : std::max(best, score);
          }
          certain += best > tau + band;
          possible += best > tau - band;
        }
        const int counted = survivors[static_cast<std::size_t>((b * s.query_heads + h) * s.query_length + i)];
        ASSERT_GE(counted, certain) << "batch " << b << " head " << h << " row " << i;
        ASSERT_LE(counted, possible) << "batch " << b << " head " << h << " row " << i;
      }
    }
  }
}

}  // namespace tda::test
