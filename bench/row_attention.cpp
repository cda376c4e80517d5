// Times forward and backward of the mechanisms that are functions of rows on a CUDA device, through their kernels and
// through the tensor operations that are the kernels' twins: row_attention_timing [MAPS [HEAD_DIM [LENGTH...]]], by
// default 12 64 1024 4096. Random inputs; milliseconds, the median of 20 interleaved runs.
#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>
#include <string>
#include <vector>

#include "lm/model/mechanisms/entmax_rows.h"
#include "lm/model/mechanisms/lssar_rows.h"
#include "lm/model/mechanisms/softpick_rows.h"
#include "lm/training/training_device.h"
#include "tensor_operations.h"

namespace {

constexpr int kRuns = 20;

double milliseconds(at::Device device, const std::function<void()>& work) {
  const c10::impl::VirtualGuardImpl driver(at::kCUDA);
  driver.synchronizeDevice(device.index());
  const auto start = std::chrono::steady_clock::now();
  work();
  driver.synchronizeDevice(device.index());
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

void time_map(const char* name, const tda::RowMapPointer& map, std::int64_t maps, std::int64_t dim, std::int64_t length,
              at::Device device) {
  const auto leaf = [&](double factor) {
    return (at::randn({1, maps, length, dim}, at::TensorOptions().device(device)) * factor).requires_grad_();
  };
  const auto q = leaf(1 / std::sqrt(static_cast<double>(dim))), k = leaf(1), v = leaf(1);
  const auto d_output = leaf(1).detach();
  const tda::RowMapPointer paths[] = {tda::test::tensor_operations(map), map};
  std::vector<double> forward[2], both[2];
  for (int run = -2; run < kRuns; ++run) {
    for (int path = 0; path < 2; ++path) {
      at::Tensor output;
      const double ahead = milliseconds(device, [&] { output = tda::row_attention(q, k, v, paths[path]); });
      const double back = milliseconds(device, [&] { torch::autograd::grad({output}, {q, k, v}, {d_output}); });
      if (run < 0) continue;
      forward[path].push_back(ahead);
      both[path].push_back(ahead + back);
    }
  }
  std::printf("%-12s %7lld | %9.3f %9.3f | %9.3f %9.3f | %5.1fx\n", name, static_cast<long long>(length),
              median(forward[0]), median(both[0]), median(forward[1]), median(both[1]),
              median(both[0]) / median(both[1]));
  std::fflush(stdout);
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  const auto number = [&](std::size_t i, long long otherwise) {
    return i < arguments.size() ? std::stoll(arguments[i]) : otherwise;
  };
  const auto device = tda::choose_training_device("auto", 0);
  if (!device.is_cuda()) {
    std::fprintf(stderr, "row_attention_timing: no CUDA device\n");
    return 2;
  }
  std::vector<std::int64_t> lengths{1024, 4096};
  if (arguments.size() > 2) lengths.clear();
  for (std::size_t i = 2; i < arguments.size(); ++i) lengths.push_back(std::stoll(arguments[i]));
  std::printf("%lld maps, head_dim %lld, fp32, ms  |  tensor operations  |       kernels       |\n", number(0, 12),
              number(1, 64));
  std::printf("%-12s %7s | %9s %9s | %9s %9s |\n", "map", "T", "forward", "and back", "forward", "and back");
  for (const std::int64_t length : lengths) {
    const auto time = [&](const char* name, const tda::RowMapPointer& map) {
      time_map(name, map, number(0, 12), number(1, 64), length, device);
    };
    time("entmax 1.5", tda::make_entmax_rows(1.5));
    time("sparsemax", tda::make_entmax_rows(2));
    time("entmax 1.3", tda::make_entmax_rows(1.3));
    time("lssar", tda::make_lssar_rows(15, 1));
    time("softpick", tda::make_softpick_rows(1e-8));
  }
  return 0;
}
