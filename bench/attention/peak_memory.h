// Peak of what PyTorch's CPU allocator hands out.
#pragma once

#include <cstdint>
#include <functional>

namespace tda::bench {

// Most bytes in use at once while `body` runs, beyond what was in use before. Sees allocations of this thread, which is
// the one where PyTorch's operators allocate.
std::int64_t peak_bytes(const std::function<void()>& body);

}  // namespace tda::bench
