#include "lm/training/throughput.h"

#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <c10/core/GradMode.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>

namespace tda {
namespace {

std::int64_t peak_matrix_size(at::Device device) { return device.is_cuda() ? 8192 : 1024; }

constexpr int kRounds = 8;

}  // namespace

double training_flops_per_token(const Gpt& model) {
  const ModelConfig& config = model.config();
  const HeadLayout layout = model.mechanism().layout();
  const auto attention_width = static_cast<double>(layout.heads * (layout.views * layout.head_dim + layout.value_dim));
  return 6.0 * static_cast<double>(model.parameter_count().matmul()) +
         3.0 * static_cast<double>(config.layers * (config.context + 1)) * attention_width;
}

double measure_peak_flops(Precision precision, at::Device device) {
  const c10::NoGradGuard no_gradient;
  const std::int64_t size = peak_matrix_size(device);
  const auto type = precision == Precision::kBFloat16 ? at::kBFloat16 : at::kFloat;
  const at::Tensor left = at::ones({size, size}, at::TensorOptions().dtype(type).device(device));
  const at::Tensor right = left.clone();
  double best_seconds = 1e30;
  for (int round = 0; round < kRounds; ++round) {
    const auto start = std::chrono::steady_clock::now();
    // Reading one element waits for a device that works asynchronously.
    at::matmul(left, right).data().select(0, 0).select(0, 0).item<float>();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    if (round > 0) best_seconds = std::min(best_seconds, elapsed.count());
  }
  const auto n = static_cast<double>(size);
  return 2.0 * n * n * n / best_seconds;
}

std::string peak_description(at::Device device) {
  const std::int64_t size = peak_matrix_size(device);
  return fmt::format("measured with a {0} x {0} x {0} matrix product", size);
}

}  // namespace tda
