#include "attention/cpu/kernel_choice.h"

#include <cstdlib>
#include <string_view>

namespace tda::cpu {
namespace {

std::string_view environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? std::string_view() : std::string_view(value);
}

KernelChoice choose() {
  KernelChoice choice;
  const std::string_view simd = environment("TDA_SIMD");
  if (!simd.empty()) choice.simd = find_simd_kernels(simd.data());
  if (choice.simd == nullptr) choice.simd = best_simd_kernels();

  const std::string_view bf16 = environment("TDA_BF16");
  // A forced narrow instruction set means "behave like that CPU", which has no bf16 engine either.
  const bool wide = std::string_view(choice.simd->name) == "avx3";
  if (bf16 != "off" && wide) {
    if (bf16 != "avx512") choice.bf16 = amx_engine();
    if (choice.bf16 == nullptr) choice.bf16 = avx512_bf16_engine();
  }

  const std::string_view screening = environment("TDA_SCREENING");
  if (screening == "off") choice.screening = Screening::kOff;
  if (screening == "always") choice.screening = Screening::kAlways;
  return choice;
}

KernelChoice& current() {
  static KernelChoice choice = choose();
  return choice;
}

}  // namespace

const KernelChoice& kernel_choice() { return current(); }
void set_kernel_choice(const KernelChoice& choice) { current() = choice; }

}  // namespace tda::cpu
