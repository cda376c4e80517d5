// Shared-memory barriers (mbarrier), named barriers and warpgroup register budgets, under the names of what they do.
//
// Parity convention: a barrier starts in phase 0. wait(barrier, p) returns once the phase of parity p is complete, so a
// consumer waits on a fresh "full" barrier with 0 and a producer on a fresh "empty" barrier with 1 (returns at once).
#pragma once

#include <cstdint>

#include "attention/cuda/common/shared_address.cuh"

namespace tda::cuda {

// The first multiple of 1024 at or behind `pointer` (swizzled tiles need it), held in a register: the compiler would
// otherwise compute it anew in every turn of a loop.
__device__ __forceinline__ std::uint32_t aligned_shared_address(const void* pointer) {
  std::uint32_t address = (shared_address(pointer) + 1023u) & ~1023u;
  asm volatile("" : "+r"(address));
  return address;
}

__device__ __forceinline__ void barrier_init(std::uint32_t barrier, std::uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(arrivals));
}

// Makes initialised barriers visible to the copy engine; follow it with __syncthreads().
__device__ __forceinline__ void barrier_init_fence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}

__device__ __forceinline__ void barrier_arrive(std::uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}

// Arrives and announces `bytes` that the copy engine will deliver before the phase can complete.
__device__ __forceinline__ void barrier_arrive_expect(std::uint32_t barrier, std::uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}

__device__ __forceinline__ void barrier_wait(std::uint32_t barrier, std::uint32_t parity) {
  std::uint32_t done;
  do {
    asm volatile(
        "{\n.reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n"
        "selp.u32 %0, 1, 0, p;\n}\n"
        : "=r"(done)
        : "r"(barrier), "r"(parity)
        : "memory");
  } while (done == 0);
}

// A place in a ring of kSlots buffers, each with a "full" and an "empty" barrier: the slot, and the parity to wait for.
// A consumer begins with phase 0, a producer with 1.
template <int kSlots>
struct SlotRing {
  int slot = 0;
  std::uint32_t phase;
  __device__ __forceinline__ explicit SlotRing(std::uint32_t first_phase) : phase(first_phase) {}
  __device__ __forceinline__ void advance() {
    if (++slot == kSlots) {
      slot = 0;
      phase ^= 1;
    }
  }
};

// Named barrier over `threads` threads of the block (a warpgroup: 128).
__device__ __forceinline__ void named_barrier_sync(int id, int threads) {
  asm volatile("barrier.cta.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

__device__ __forceinline__ void named_barrier_arrive(int id, int threads) {
  asm volatile("barrier.cta.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// Named barrier that also returns whether any (all) of the 128 threads of a warpgroup brought `predicate`.
__device__ __forceinline__ bool warpgroup_any(int id, bool predicate) {
  std::uint32_t result;
  asm volatile(
      "{\n.reg .pred in, out;\n"
      "setp.ne.u32 in, %1, 0;\n"
      "barrier.cta.red.or.pred out, %2, 128, in;\n"
      "selp.u32 %0, 1, 0, out;\n}\n"
      : "=r"(result)
      : "r"(static_cast<std::uint32_t>(predicate)), "r"(id)
      : "memory");
  return result != 0;
}

__device__ __forceinline__ bool warpgroup_all(int id, bool predicate) { return !warpgroup_any(id, !predicate); }

template <int kRegisters>
__device__ __forceinline__ void grow_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

template <int kRegisters>
__device__ __forceinline__ void shrink_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

}  // namespace tda::cuda
