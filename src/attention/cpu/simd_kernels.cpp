// Compiles the vector kernels once per instruction set and picks a table at run time.
#include "attention/cpu/simd_kernels.h"

#include <cmath>
#include <string_view>

// AVX-512 with its bf16 and AMX extensions is served by bf16_engine; SSSE3 and the DL group would add only size.
#define HWY_DISABLED_TARGETS (HWY_SSSE3 | HWY_AVX3_DL)
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "attention/cpu/simd_kernels.cpp"
#include "hwy/foreach_target.h"  // must come first: it includes this file once per instruction set

#include "attention/cpu/simd_weights-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tda::cpu::HWY_NAMESPACE {

const SimdKernels* Table(const char* name) {
  static SimdKernels table = {name,
                              Multiply,
                              MultiplyScores,
                              MultiplyRows,
                              InverseNorms,
                              UnitRows,
                              LoadRows,
                              StoreRows,
                              RoundRows,
                              AllFinite,
                              Weigh,
                              ExceedingRows,
                              SelectSurvivors,
                              AccumulateSurvivors,
                              CountLanes,
                              SurvivorGradients,
                              CombineGradients,
                              NormalizeBackward};
  return &table;
}

}  // namespace tda::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tda::cpu {

const SimdKernels* find_simd_kernels(const char* name) {
  const std::string_view wanted = name;
  [[maybe_unused]] const auto supported = hwy::SupportedTargets();
#if HWY_TARGETS & HWY_AVX3
  if (wanted == "avx3" && (supported & HWY_AVX3) != 0) return N_AVX3::Table("avx3");
#endif
#if HWY_TARGETS & HWY_AVX2
  if (wanted == "avx2" && (supported & HWY_AVX2) != 0) return N_AVX2::Table("avx2");
#endif
#if HWY_TARGETS & HWY_SSE4
  if (wanted == "sse4" && (supported & HWY_SSE4) != 0) return N_SSE4::Table("sse4");
#endif
  if (wanted == "baseline") return HWY_STATIC_DISPATCH(Table)("baseline");
  return nullptr;
}

const SimdKernels* best_simd_kernels() {
  for (const char* name : {"avx3", "avx2", "sse4"}) {
    if (const SimdKernels* kernels = find_simd_kernels(name)) return kernels;
  }
  return find_simd_kernels("baseline");
}

PowerRule make_power_rule(double power) {
  PowerRule rule;
  rule.power = static_cast<float>(power);
  rule.kind = power == 1.0   ? PowerRule::kOne
              : power == 2.0 ? PowerRule::kTwo
              : power == 3.0 ? PowerRule::kThree
              : power == 1.5 ? PowerRule::kThreeHalves
                             : PowerRule::kGeneral;
  return rule;
}

}  // namespace tda::cpu
#endif  // HWY_ONCE
