#include "lm/training/training_device.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <dlfcn.h>
#include <fmt/format.h>

#include <cstdlib>

#include "lm/error.h"

namespace tda {
namespace {

#ifdef TDA_TORCH_CUDA
constexpr bool kBuiltWithCuda = true;
#else
constexpr bool kBuiltWithCuda = false;
#endif

// PyTorch's CUDA half is opened here, not linked: loading it takes a second that runs on a CPU need not spend. Must
// come before the first question to PyTorch about CUDA, whose answer it keeps.
bool open_cuda() {
  if (!kBuiltWithCuda || ::dlopen("libcuda.so.1", RTLD_LAZY) == nullptr) return false;  // no driver
  return ::dlopen("libtorch_cuda.so", RTLD_NOW | RTLD_GLOBAL) != nullptr && at::globalContext().hasCUDA();
}

at::Device choose_gpu(int local_rank) {
  const c10::impl::VirtualGuardImpl driver(at::kCUDA);
  const int count = driver.deviceCount();
  if (local_rank >= count) {
    throw Error(fmt::format("LOCAL_RANK is {}, but this machine has {} GPUs", local_rank, count),
                "start at most one process per GPU");
  }
  const at::Device device(at::kCUDA, static_cast<c10::DeviceIndex>(local_rank));
  driver.setDevice(device);
  return device;
}

}  // namespace

at::Device choose_training_device(const std::string& name, int local_rank) {
  if (name == "cpu") return at::kCPU;
  if (open_cuda()) return choose_gpu(local_rank);
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

}  // namespace tda
