// libtda_nccl.so: c10d's NCCL backend, apart from the program because it needs libtorch_cuda.so, whose loading would
// cost every run on a CPU a second. collectives.cpp opens it when a job runs on GPUs.
#define USE_C10D_NCCL
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

// The creator of the backend: a reference that the caller owns (c10::intrusive_ptr::reclaim). Throws what c10d throws.
extern "C" __attribute__((visibility("default"))) c10d::Backend* tda_create_nccl_backend(
    const c10::intrusive_ptr<c10d::Store>& store, int rank, int world_size, c10::Device device,
    std::chrono::milliseconds timeout) {
  const auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = timeout;
  c10::intrusive_ptr<c10d::Backend> group =
      c10::make_intrusive<c10d::ProcessGroupNCCL>(store, rank, world_size, options);
  group->setBoundDeviceId(device);
  return group.release();
}
