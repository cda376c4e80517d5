// The formulas that the CUDA kernels of row maps run, on the CPU, against their readable twins.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <string>
#include <vector>

#include "golden_input.h"
#include "lm/model/mechanisms/causal_positions.h"
#include "row_map_cases.h"
#include "serial_team.h"

namespace tda {
namespace {

using test::allowed_error;
using test::largest_error;
using test::lcg;
using test::row_map_cases;
using test::RowMapCase;
using test::SerialTeam;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();

struct Result {
  at::Tensor weights, d_scores;
};

int visible_keys_of(std::int64_t row, const at::Tensor& scores) {
  return static_cast<int>(scores.size(1) - scores.size(0) + 1 + row);
}

// Rows (R, N) one by one, as a kernel does; NaN stands where a formula must not look or write.
Result by_formula(const RowMap& map, const at::Tensor& scores, const at::Tensor& d_weights) {
  const Result result{at::zeros_like(scores), at::zeros_like(scores)};
  std::visit(
      [&](const auto& row) {
        row.with_formula([&](const auto& formula) {
          for (std::int64_t i = 0; i < scores.size(0); ++i) {
            SerialTeam team(visible_keys_of(i, scores));
            float statistics[4];
            const auto copy = scores[i].clone(), weights = at::full_like(copy, kNan);
            formula.weights(team, copy.data_ptr<float>(), weights.data_ptr<float>(), statistics);
            const auto again = scores[i].clone(), gradient = d_weights[i].clone();
            formula.gradients(team, statistics, again.data_ptr<float>(), gradient.data_ptr<float>());
            const auto seen = [&](const at::Tensor& x) { return x.narrow(0, 0, team.count()); };
            EXPECT_TRUE(at::equal(seen(weights).isnan(), seen(again).isnan()));
            EXPECT_TRUE(at::allclose(seen(weights), seen(again), 0, 0, true))
                << "backward sees other weights, row " << i;
            seen(result.weights[i]).copy_(seen(weights));
            seen(result.d_scores[i]).copy_(seen(gradient));
          }
        });
      },
      *map.formula());
  return result;
}

Result by_twin(const RowMap& map, const at::Tensor& scores, const at::Tensor& d_weights) {
  const std::int64_t rows = scores.size(0), keys = scores.size(1);
  const auto future = future_keys(rows, keys, at::kCPU);
  const RowBlock block{scores.masked_fill(future, map.hidden_score()).unsqueeze(0),
                       at::arange(keys - rows + 1, keys + 1, scores.options()).unsqueeze(-1)};
  const auto seen_gradient = d_weights.masked_fill(future, 0).unsqueeze(0);
  const auto statistics = map.statistics(block);
  const auto weights = map.weights(block, statistics);
  const auto d_scores = map.score_gradient(block, statistics, weights, seen_gradient);
  return {weights.squeeze(0).masked_fill(future, 0), d_scores.squeeze(0).masked_fill(future, 0)};
}

class RowFormulaCase : public testing::TestWithParam<RowMapCase> {
 protected:
  // Thousands of small tensors, for which threads would mostly wait for each other.
  void SetUp() override {
    threads_ = at::get_num_threads();
    at::set_num_threads(1);
  }
  void TearDown() override { at::set_num_threads(threads_); }

  const RowMap& map() const { return *GetParam().map; }

  // Scores f(random in (-1, 1)). LSSAR divides by what is left of a difference, so that few rows make the largest
  // errors, by chance more or less: the twin is asked for the same rows several times, with scores that differ in the
  // last bit.
  template <typename F>
  void expect_twin(std::int64_t rows, std::int64_t keys, const std::string& what, F&& f) const {
    Kept ours, twin, exact;
    const std::int64_t draws = std::max<std::int64_t>(1, 128 / rows * 1000 / (1000 + keys));
    for (std::int64_t draw = 0; draw < draws; ++draw) {
      const auto seed = static_cast<std::uint32_t>(1000 * draw);
      const at::Tensor scores = f(lcg(3 + seed, {rows, keys}).to(at::kFloat));
      const auto d_weights = lcg(8 + seed, {rows, keys}).to(at::kFloat);
      const auto reference = by_twin(map(), scores.to(at::kDouble), d_weights.to(at::kDouble));
      const auto our_result = by_formula(map(), scores, d_weights);
      for (std::uint32_t rounding = 0; rounding < 5; ++rounding) {
        const auto last_bit = rounding == 0 ? 0 * scores : lcg(seed + rounding, {rows, keys}).sign() * scores * 0x1p-24;
        twin.add(by_twin(map(), scores + last_bit.to(at::kFloat), d_weights));
        ours.add(our_result);
        exact.add(reference);
      }
    }
    for (int i = 0; i < 2; ++i) {
      const auto reference = at::cat(exact.results[i]);
      EXPECT_LE(largest_error(at::cat(ours.results[i]), reference), allowed_error(at::cat(twin.results[i]), reference))
          << (i == 0 ? "weights, " : "gradient, ") << what;
    }
  }

 private:
  int threads_ = 0;

  struct Kept {
    std::vector<at::Tensor> results[2];
    void add(const Result& result) {
      results[0].push_back(result.weights);
      results[1].push_back(result.d_scores);
    }
  };
};

TEST_P(RowFormulaCase, FollowsTheTwin) {
  for (const auto& [rows, keys] : {std::pair{1, 1}, {5, 5}, {40, 40}, {7, 300}, {4, 5000}, {2, 20001}}) {
    for (const float size : {0.5f, 5.0f, 40.0f}) {
      const auto what = std::to_string(rows) + " x " + std::to_string(keys) + ", " + std::to_string(size);
      expect_twin(rows, keys, what, [&](const at::Tensor& x) { return x * size; });
    }
  }
}

TEST_P(RowFormulaCase, FollowsTheTwinWhereScoresAreAlikeOrFarFromZero) {
  std::vector<float> sizes{0.0f, 1.0f, -3.0f, 80.0f, -80.0f};
  // Those of LSSAR are products of unit vectors and two logarithms.
  if (!GetParam().name.starts_with("lssar")) sizes.insert(sizes.end(), {1e4f, -1e4f});
  for (const float size : sizes) {
    expect_twin(9, 9, "all " + std::to_string(size), [&](const at::Tensor& x) { return at::full_like(x, size); });
    expect_twin(9, 9, "near " + std::to_string(size), [&](const at::Tensor& x) { return x + size; });
  }
}

// One that is not finite makes its row NaN where it does so in the twin, and no other row.
TEST_P(RowFormulaCase, IsNotFiniteWhereTheTwinIsNot) {
  for (const float bad : {kNan, kInfinity, -kInfinity}) {
    const auto scores = lcg(3, {9, 9}).to(at::kFloat), d_weights = lcg(8, {9, 9}).to(at::kFloat);
    scores[4][2] = bad;
    scores[5][8] = bad;  // of a key that the row does not see
    const auto twin = by_twin(map(), scores, d_weights), ours = by_formula(map(), scores, d_weights);
    EXPECT_TRUE(at::equal(ours.weights.isnan(), twin.weights.isnan())) << bad;
    EXPECT_TRUE(at::equal(ours.d_scores.isnan(), twin.d_scores.isnan())) << bad;
    EXPECT_TRUE(ours.weights[5].isfinite().all().item<bool>()) << bad;
    EXPECT_EQ(ours.weights[4].isnan().any().item<bool>(), bad != -kInfinity) << bad;
  }
}

INSTANTIATE_TEST_SUITE_P(All, RowFormulaCase, testing::ValuesIn(row_map_cases()),
                         [](const auto& c) { return c.param.name; });

// The last key is read in every pass, whichever part of a sum it belongs to.
TEST(RowFormula, WeightsOfEveryLengthSumToOne) {
  for (const char* name : {"entmax", "lssar"}) {
    const auto map = std::string(name) == "entmax" ? make_entmax_rows(1.5) : make_lssar_rows(15, 1);
    for (int keys = 1; keys <= 600; ++keys) {
      auto scores = lcg(3, {1, keys}).to(at::kFloat);
      scores[0][keys - 1] = 1.5;
      const auto weights = by_formula(*map, scores, at::ones_like(scores)).weights;
      ASSERT_NEAR(weights.sum().item<float>(), 1, 1e-5) << name << " " << keys;
      ASSERT_GT(weights[0][keys - 1].item<float>(), 0) << name << " " << keys;
    }
  }
}

}  // namespace
}  // namespace tda
