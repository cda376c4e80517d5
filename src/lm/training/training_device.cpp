#include "lm/training/training_device.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <fmt/format.h>

#include <cstdlib>
#include <string_view>

#include "lm/error.h"

namespace tda {
namespace {

#ifdef TDA_WITH_CUDA
constexpr bool kBuiltWithCuda = true;
#else
constexpr bool kBuiltWithCuda = false;
#endif

}  // namespace

at::Device choose_training_device(const std::string& name) {
  if (name == "cpu") return at::kCPU;
  const bool available = kBuiltWithCuda && at::globalContext().hasCUDA();
  if (available) return at::Device(at::kCUDA, 0);
  if (name == "auto") return at::kCPU;
  if (!kBuiltWithCuda) {
    throw Error("train.device is cuda, but this program was built without CUDA kernels",
                "build it where a CUDA toolkit is found, or pass --train.device cpu");
  }
  throw Error("train.device is cuda, but no GPU is available", "`nvidia-smi` should list one; or --train.device cpu");
}

int set_training_threads(std::int64_t threads) {
  if (threads > 0) at::set_num_threads(static_cast<int>(threads));
  return at::get_num_threads();
}

void use_huge_pages() { ::setenv("THP_MEM_ALLOC_ENABLE", "1", /*overwrite=*/0); }

void require_single_process() {
  const char* world_size = std::getenv("WORLD_SIZE");
  if (world_size == nullptr || std::string_view(world_size) == "1") return;
  throw Error(fmt::format("WORLD_SIZE is {}, expected 1: this program trains with one process", world_size),
              "start `tda train` without a launcher");
}

}  // namespace tda
