#pragma once

#include <cstdint>

namespace tda {

/// A pseudo-random permutation of [0, size) that is computed element by element, without memory: a Feistel network over
/// the next power of four with cycle walking (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). Integer
/// arithmetic only, so the same everywhere. Not for cryptography.
class RandomPermutation {
 public:
  /// 1 <= size <= 2^62. Different (seed, stream) give unrelated permutations.
  RandomPermutation(uint64_t size, uint64_t seed, uint64_t stream);

  /// Image of index < size; less than four network evaluations on average.
  uint64_t operator()(uint64_t index) const;

 private:
  static constexpr int kRounds = 6;

  uint64_t size_;
  int half_bits_;
  uint64_t round_keys_[kRounds];
};

}  // namespace tda
