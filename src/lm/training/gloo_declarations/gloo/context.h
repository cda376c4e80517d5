// Stands in for Gloo's header: see ../README.md.
#pragma once

#include <chrono>

namespace gloo {

// ProcessGroupGloo holds pointers to contexts; LibTorch makes and frees them.
class Context {
 public:
  void setTimeout(std::chrono::milliseconds timeout);
};

}  // namespace gloo
