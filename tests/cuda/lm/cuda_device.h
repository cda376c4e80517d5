#pragma once

#include <c10/core/Device.h>

#include "lm/training/training_device.h"

namespace tda::test {

// The first CUDA device, or the CPU where there is none.
inline at::Device cuda_device() {
  static const at::Device device = choose_training_device("auto", 0);
  return device;
}

}  // namespace tda::test
