// Which kernels run: the best that the CPU has, unless the environment (TDA_SIMD, TDA_BF16, TDA_SCREENING) or a test
// says otherwise.
#pragma once

#include "attention/cpu/bf16_engine.h"
#include "attention/cpu/simd_kernels.h"

namespace tda::cpu {

// Screening finds candidate pairs of fp32 and fp16 inputs with bf16 products and a proved margin; it never changes a
// result. kAdaptive screens where it pays.
enum class Screening { kOff, kAdaptive, kAlways };

struct KernelChoice {
  const SimdKernels* simd = nullptr;
  const Bf16Engine* bf16 = nullptr;  // null: bf16 inputs are computed in fp32, nothing is screened
  Screening screening = Screening::kAdaptive;
};

// TDA_SIMD = avx3 | avx2 | sse4 | baseline; TDA_BF16 = amx | avx512 | off; TDA_SCREENING = off | adaptive | always.
// Values that the CPU cannot serve fall back to the best it can.
const KernelChoice& kernel_choice();

// Replaces the choice, for tests. Not for use while a kernel runs.
void set_kernel_choice(const KernelChoice& choice);

}  // namespace tda::cpu
