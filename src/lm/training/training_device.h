// Where training computes, and with how many CPU threads.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <string>

namespace tda {

// `name` is auto, cpu or cuda. auto takes a GPU when this program has CUDA kernels and the machine a GPU: that of
// number `local_rank`, which becomes the current one. Throws Error when cuda is asked for and not there.
at::Device choose_training_device(const std::string& name, int local_rank = 0);

// 0 leaves LibTorch's choice. Returns the number in use.
int set_training_threads(std::int64_t threads);

// Lets LibTorch put large CPU tensors on huge pages, unless the environment says otherwise (THP_MEM_ALLOC_ENABLE).
// Training allocates and frees the same megabytes again and again and spends a tenth of its time on page faults without
// it. Has an effect only before the first tensor is made.
void use_huge_pages();

}  // namespace tda
