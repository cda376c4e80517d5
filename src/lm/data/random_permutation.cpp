#include "lm/data/random_permutation.h"

#include <bit>

namespace tda {
namespace {

// The output function of SplitMix64 (Steele, Lea and Flood 2014): every output bit depends on every input bit.
uint64_t mix(uint64_t value) {
  value += 0x9e3779b97f4a7c15;
  value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
  value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
  return value ^ (value >> 31);
}

}  // namespace

RandomPermutation::RandomPermutation(uint64_t size, uint64_t seed, uint64_t stream) : size_(size) {
  const int bits = std::bit_width(size - 1);
  half_bits_ = bits < 2 ? 1 : (bits + 1) / 2;
  uint64_t key = mix(mix(seed) ^ stream);
  for (uint64_t& round_key : round_keys_) round_key = key = mix(key);
}

uint64_t RandomPermutation::operator()(uint64_t index) const {
  const uint64_t mask = (uint64_t{1} << half_bits_) - 1;
  do {
    uint64_t left = index >> half_bits_;
    uint64_t right = index & mask;
    for (const uint64_t key : round_keys_) {
      const uint64_t next = left ^ (mix(right ^ key) & mask);
      left = right;
      right = next;
    }
    index = left << half_bits_ | right;
  } while (index >= size_);
  return index;
}

}  // namespace tda
