// Every instruction set, matrix engine and way of screening that this CPU has, not only the ones it would choose.
#include "attention/cpu/kernel_choice.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>

#include "random_case.h"
#include "rounding_rule.h"

namespace tda::test {
namespace {

using cpu::KernelChoice;
using cpu::Screening;

class KernelChoices : public testing::Test {
 protected:
  ~KernelChoices() override { cpu::set_kernel_choice(chosen_); }

  Results run_with(const KernelChoice& choice, const AttentionCase& test_case) const {
    cpu::set_kernel_choice(choice);
    return run(test_case, Implementation::kOperator, true);
  }

  const KernelChoice chosen_ = cpu::kernel_choice();
};

bool same_bits(const std::vector<double>& a, const std::vector<double>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(double)) == 0;
}

void expect_same_bits(const Results& a, const Results& b) {
  EXPECT_EQ(a.survivors, b.survivors);
  EXPECT_TRUE(same_bits(a.output, b.output)) << "output";
  EXPECT_TRUE(same_bits(a.dv, b.dv)) << "dv";
  EXPECT_TRUE(same_bits(a.dbeta, b.dbeta)) << "dbeta";
  EXPECT_TRUE(same_bits(a.dlambda, b.dlambda)) << "dlambda";
  for (int view = 0; view < 2; ++view) {
    EXPECT_TRUE(same_bits(a.dq[view], b.dq[view])) << "dq of view " << view;
    EXPECT_TRUE(same_bits(a.dk[view], b.dk[view])) << "dk of view " << view;
  }
}

TEST_F(KernelChoices, ScreeningNeverChangesABit) {
  if (chosen_.bf16 == nullptr) GTEST_SKIP() << "this CPU has no bf16 products to screen with";
  for (std::uint64_t seed = 0; seed < 120; ++seed) {
    const AttentionCase test_case = random_case(seed);
    if (test_case.options.data_type == DataType::kFloat64) continue;  // never screened
    SCOPED_TRACE("seed " + std::to_string(seed) + ": " + test_case.describe());
    KernelChoice choice = chosen_;
    choice.screening = Screening::kOff;
    const Results off = run_with(choice, test_case);
    choice.screening = Screening::kAlways;
    expect_same_bits(off, run_with(choice, test_case));
    choice.screening = Screening::kAdaptive;
    expect_same_bits(off, run_with(choice, test_case));
    if (HasFailure()) return;
  }
}

TEST_F(KernelChoices, EveryInstructionSetAndEngineFollowsTheReference) {
  std::vector<KernelChoice> choices;
  for (const char* name : {"avx3", "avx2", "sse4", "baseline"}) {
    if (const auto* simd = cpu::find_simd_kernels(name)) choices.push_back({simd, nullptr, Screening::kAdaptive});
  }
  ASSERT_FALSE(choices.empty());
  for (const auto* engine : {cpu::avx512_bf16_engine(), cpu::amx_engine()}) {
    if (engine != nullptr) choices.push_back({chosen_.simd, engine, Screening::kAdaptive});
  }
  for (std::uint64_t seed = 5000; seed < 5040; ++seed) {
    AttentionCase test_case = random_case(seed);
    std::mt19937_64 random(seed);
    // Below p = 2 gradients jump at the threshold (random_case.h).
    if (test_case.options.power < 2.0 && !keep_scores_off_thresholds(test_case, random)) continue;
    const Results reference = run(test_case.in_double(), Implementation::kReference, true);
    const NaiveError error = measure_naive_error(test_case, reference);
    for (const KernelChoice& choice : choices) {
      SCOPED_TRACE(std::string(choice.simd->name) + (choice.bf16 ? std::string(" with ") + choice.bf16->name : "") +
                   ", seed " + std::to_string(seed) + ": " + test_case.describe());
      expect_follows_rule(test_case, run_with(choice, test_case), reference, error);
      if (HasFailure()) return;
    }
  }
}

}  // namespace
}  // namespace tda::test
