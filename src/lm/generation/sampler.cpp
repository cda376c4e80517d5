#include "lm/generation/sampler.h"

#include <ATen/ATen.h>
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <stdexcept>

#include "lm/error.h"

namespace tda {

void check_sampling(const SamplingOptions& options) {
  if (!std::isfinite(options.temperature) || options.temperature < 0) {
    throw Error(fmt::format("temperature is {}, expected a number of at least 0", options.temperature));
  }
  if (options.top_k < 0) throw Error(fmt::format("top-k is {}, expected a whole number of at least 0", options.top_k));
  if (!(options.top_p > 0 && options.top_p <= 1)) {
    throw Error(fmt::format("top-p is {}, expected a number above 0 and at most 1", options.top_p));
  }
}

Sampler::Sampler(const SamplingOptions& options, std::int64_t vocabulary)
    : options_(options), vocabulary_(vocabulary), state_(options.seed) {
  check_sampling(options);
}

// SplitMix64 (Steele, Lea, Flood 2014).
double Sampler::next_uniform() {
  std::uint64_t x = (state_ += 0x9e3779b97f4a7c15u);
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  x ^= x >> 31;
  return static_cast<double>(x >> 11) * 0x1p-53;
}

std::int32_t Sampler::sample(const at::Tensor& logits) {
  const at::Tensor values = logits.detach().to(at::kCPU, at::kFloat).contiguous();
  const float* data = values.const_data_ptr<float>();
  candidates_.clear();
  double largest = -INFINITY;
  for (std::int32_t id = 0; id < vocabulary_; ++id) {
    if (!std::isfinite(data[id])) throw std::runtime_error(fmt::format("the logit of token {} is not finite", id));
    candidates_.emplace_back(data[id], id);
    largest = std::max(largest, static_cast<double>(data[id]));
  }
  // Ties go to the smaller id, so that the order does not depend on the sorting algorithm.
  const auto before = [](const auto& a, const auto& b) {
    return a.first > b.first || (a.first == b.first && a.second < b.second);
  };
  if (options_.temperature == 0) return std::min_element(candidates_.begin(), candidates_.end(), before)->second;

  auto kept = candidates_.size();
  if (options_.top_k > 0) kept = std::min(kept, static_cast<std::size_t>(options_.top_k));
  if (kept < candidates_.size() || options_.top_p < 1) {
    std::partial_sort(candidates_.begin(), candidates_.begin() + static_cast<std::ptrdiff_t>(kept), candidates_.end(),
                      before);
  }
  double sum = 0;
  for (std::size_t i = 0; i < kept; ++i) {
    candidates_[i].first = std::exp((candidates_[i].first - largest) / options_.temperature);
    sum += candidates_[i].first;
  }
  if (options_.top_p < 1) {
    const double wanted = options_.top_p * sum;
    double partial = 0;
    std::size_t nucleus = 0;
    while (nucleus < kept && partial < wanted) partial += candidates_[nucleus++].first;
    kept = nucleus;
    sum = partial;
  }
  double remaining = next_uniform() * sum;
  for (std::size_t i = 0; i + 1 < kept; ++i) {
    remaining -= candidates_[i].first;
    if (remaining < 0) return candidates_[i].second;
  }
  return candidates_[kept - 1].second;
}

}  // namespace tda
