// Models whose attention runs in the kernels of row maps, on a CUDA device beside the CPU.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <string>
#include <vector>

#include "cuda_device.h"
#include "golden_input.h"
#include "small_model.h"

namespace tda {
namespace {

// Loss, and the gradient of every parameter, fp64 on the CPU. `noise`: how far every weight is moved, relative.
std::vector<at::Tensor> loss_and_gradients(const std::string& mechanism, at::Device device, Precision precision,
                                           double noise = 0) {
  auto config = test::small_config(mechanism);
  config.context = 700;
  const auto model = test::small_model(config);
  std::vector<at::Tensor> leaves;
  if (noise != 0) {
    at::NoGradGuard no_gradient;
    for (const auto& parameter : model->parameters()) {
      auto tensor = parameter.tensor;
      tensor.mul_((1 + noise * test::lcg(5, tensor.sizes()).sign()).to(tensor.scalar_type()));
    }
  }
  model->to(device);
  model->set_precision(precision);
  const auto ids = test::random_ids(2, 701).to(device);
  const auto loss = model->loss(ids.slice(1, 0, -1).contiguous(), ids.slice(1, 1).contiguous());
  std::vector<at::Tensor> results{loss.detach().to(at::kCPU, at::kDouble)};
  for (const auto& parameter : model->parameters()) leaves.push_back(parameter.tensor);
  for (const auto& gradient : torch::autograd::grad({loss}, leaves))
    results.push_back(gradient.to(at::kCPU, at::kDouble));
  return results;
}

double relative_distance(const at::Tensor& x, const at::Tensor& y) {
  return ((x - y).norm() / y.norm().clamp_min(1e-30)).item<double>();
}

class RowModel : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    if (!test::cuda_device().is_cuda()) GTEST_SKIP() << "no CUDA device";
  }
};

// Two orders of summation differ, in a product over 64 to 256 channels, by about 2^-21 of the result. The distance of
// device and CPU is held against that of two CPU models whose weights differ by a little more.
TEST_P(RowModel, LossAndGradientsAreThoseOfTheCpuInFp32) {
  const auto cpu = loss_and_gradients(GetParam(), at::kCPU, Precision::kFloat32);
  const auto moved = loss_and_gradients(GetParam(), at::kCPU, Precision::kFloat32, 0x1p-20);
  const auto ours = loss_and_gradients(GetParam(), test::cuda_device(), Precision::kFloat32);
  for (std::size_t i = 0; i < cpu.size(); ++i) {
    EXPECT_LE(relative_distance(ours[i], cpu[i]), 2 * relative_distance(moved[i], cpu[i]) + 0x1p-20) << i;
  }
}

// A model in bf16 is as far from fp32 on the device as it is on the CPU, within a factor of two and one rounding.
TEST_P(RowModel, LossAndGradientsAreThoseOfTheCpuInBf16) {
  const auto exact = loss_and_gradients(GetParam(), at::kCPU, Precision::kFloat32);
  const auto cpu = loss_and_gradients(GetParam(), at::kCPU, Precision::kBFloat16);
  const auto ours = loss_and_gradients(GetParam(), test::cuda_device(), Precision::kBFloat16);
  for (std::size_t i = 0; i < cpu.size(); ++i) {
    EXPECT_LE(relative_distance(ours[i], exact[i]), 2 * relative_distance(cpu[i], exact[i]) + 0x1p-8) << i;
  }
}

INSTANTIATE_TEST_SUITE_P(Mechanisms, RowModel, testing::Values("entmax", "asentmax", "lssar", "softpick"),
                         [](const auto& name) { return name.param; });

}  // namespace
}  // namespace tda
