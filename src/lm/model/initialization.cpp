#include "lm/model/initialization.h"

#include <ATen/Parallel.h>

#include <cmath>
#include <numbers>

namespace tda {
namespace {

// FNV-1a.
std::uint64_t hash(std::string_view text) {
  std::uint64_t h = 0xcbf29ce484222325u;
  for (const unsigned char c : text) h = (h ^ c) * 0x100000001b3u;
  return h;
}

// The output function of SplitMix64 (Steele, Lea, Flood 2014): a bijection of 64 bits with good avalanche.
std::uint64_t mix(std::uint64_t x) {
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

double uniform(std::uint64_t stream, std::uint64_t counter) {  // (0, 1)
  const std::uint64_t bits = mix(stream + counter * 0x9e3779b97f4a7c15u) >> 11;
  return (static_cast<double>(bits) + 0.5) * 0x1p-53;
}

}  // namespace

void fill_normal(const at::Tensor& tensor, std::uint64_t seed, std::string_view name, double mean, double deviation) {
  const std::uint64_t stream = mix(mix(seed + 0x9e3779b97f4a7c15u) ^ hash(name));
  float* data = tensor.mutable_data_ptr<float>();
  const std::int64_t count = tensor.numel();
  // Box-Muller makes two values of two uniforms.
  at::parallel_for(0, (count + 1) / 2, 4096, [&](std::int64_t begin, std::int64_t end) {
    for (std::int64_t pair = begin; pair < end; ++pair) {
      const auto counter = static_cast<std::uint64_t>(2 * pair);
      const double radius = std::sqrt(-2.0 * std::log(uniform(stream, counter)));
      const double angle = 2.0 * std::numbers::pi * uniform(stream, counter + 1);
      data[2 * pair] = static_cast<float>(mean + deviation * radius * std::cos(angle));
      if (2 * pair + 1 < count) data[2 * pair + 1] = static_cast<float>(mean + deviation * radius * std::sin(angle));
    }
  });
}

}  // namespace tda
