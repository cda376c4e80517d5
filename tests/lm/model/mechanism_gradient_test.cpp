// Gradients of every mechanism against central differences in fp64.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <functional>
#include <string>
#include <vector>

#include "golden_input.h"
#include "lm/model/attention_mechanism.h"

namespace tda {
namespace {

using test::every_mechanism;
using test::lcg;
using test::random_heads;
using test::random_parameters;

struct GradientCase {
  std::string name;
  ModelConfig config;
};

void PrintTo(const GradientCase& c, std::ostream* out) { *out << c.name; }

ModelConfig gradient_config(const std::string& mechanism) {
  ModelConfig config;
  config.mechanism = mechanism;
  config.heads = 2;
  config.width = 16;
  config.beta = 0.3;  // enough rows with survivors
  return config;
}

std::vector<GradientCase> gradient_cases() {
  std::vector<GradientCase> cases;
  for (const auto& name : every_mechanism()) cases.push_back({name, gradient_config(name)});
  const auto add = [&](const std::string& mechanism, const std::string& suffix, auto change) {
    cases.push_back({mechanism + "_" + suffix, gradient_config(mechanism)});
    change(cases.back().config);
  };
  add("gated_softmax", "element", [](auto& c) { c.gate = "element"; });
  add("ssmax", "bias", [](auto& c) { c.ssmax_bias = true; });
  add("entmax", "sparsemax", [](auto& c) { c.entmax_alpha = 2; });
  add("entmax", "near_softmax", [](auto& c) { c.entmax_alpha = 1.1; });
  add("asentmax", "without_bias", [](auto& c) { c.asentmax_bias = false; });
  add("lssar", "linear", [](auto& c) { c.lssar_power = 1; });
  add("lssar", "without_offset", [](auto& c) { c.lssar_offset = 0; });
  add("rela", "layer", [](auto& c) { c.rela_norm = "layer"; });
  add("rela", "gated", [](auto& c) { c.rela_norm = "gated_rms"; });
  add("rela", "head_rms", [](auto& c) { c.rela_norm = "head_rms"; });
  add("tda", "halved", [](auto& c) { c.view_heads = ViewHeads::kHalved; });
  add("diff_rela", "halved", [](auto& c) { c.view_heads = ViewHeads::kHalved; });
  return cases;
}

class MechanismGradient : public testing::TestWithParam<GradientCase> {
 protected:
  // Thousands of evaluations of tiny tensors, for which threads would mostly wait for each other.
  void SetUp() override {
    threads_ = at::get_num_threads();
    at::set_num_threads(1);
  }
  void TearDown() override { at::set_num_threads(threads_); }

  struct Problem {
    ProjectedHeads heads;
    std::vector<at::Tensor> parameters;
    std::vector<at::Tensor> inputs;  // all leaves
    std::function<at::Tensor()> loss;
  };

  Problem problem(std::int64_t batch, std::int64_t queries, std::int64_t keys) const {
    const auto& config = GetParam().config;
    Problem result{random_heads(config, batch, queries, keys), random_parameters(config), {}, {}};
    for (const auto& group : {result.heads.q, result.heads.k}) {
      for (const auto& tensor : group) {
        if (tensor.defined()) result.inputs.push_back(tensor);
      }
    }
    result.inputs.push_back(result.heads.v);
    if (mechanism_reads_hidden()) result.inputs.push_back(result.heads.hidden);
    for (const auto& parameter : result.parameters) {
      if (parameter.requires_grad()) result.inputs.push_back(parameter);
    }
    const std::shared_ptr<AttentionMechanism> mechanism = make_attention_mechanism(config);
    const auto cotangent = lcg(6, {batch, queries, config.width});
    result.loss = [mechanism, cotangent, heads = result.heads, parameters = result.parameters] {
      return (mechanism->attend(heads, parameters) * cotangent).sum();
    };
    return result;
  }

  bool mechanism_reads_hidden() const {
    const auto& name = GetParam().config.mechanism;
    return name == "gated_softmax" || name == "asentmax";
  }

 private:
  int threads_ = 0;
};

// (f(x + h d) - f(x - h d)) / 2h.
double central_difference(const std::function<at::Tensor()>& f, const at::Tensor& x, const at::Tensor& direction,
                          double h) {
  at::NoGradGuard no_gradient;
  const auto start = x.clone();
  x.copy_(start + h * direction);
  const double above = f().item<double>();
  x.copy_(start - h * direction);
  const double below = f().item<double>();
  x.copy_(start);
  return (above - below) / (2 * h);
}

// Every coordinate of every input. With h = 1e-6 the truncation is 1e-12 of the third derivative, and the rounding of
// the loss, 1e-16 of its size, is divided by h; a norm of nearly empty rows makes derivatives of 1e3.
TEST_P(MechanismGradient, EqualsCentralDifferences) {
  const auto problem = this->problem(1, 5, 5);
  const auto gradients = torch::autograd::grad({problem.loss()}, problem.inputs);
  for (std::size_t i = 0; i < problem.inputs.size(); ++i) {
    const double scale = gradients[i].abs().max().item<double>();
    EXPECT_GT(scale, 0) << "input " << i;
    for (std::int64_t element = 0; element < gradients[i].numel(); ++element) {
      const auto direction = at::zeros(gradients[i].sizes(), at::kDouble);
      direction.view({-1})[element] = 1;
      const double expected = central_difference(problem.loss, problem.inputs[i], direction, 1e-6);
      ASSERT_NEAR(gradients[i].reshape({-1})[element].item<double>(), expected, 1e-6 * std::max(scale, 1.0))
          << "input " << i << " element " << element;
    }
  }
}

// Two texts, new queries behind cached keys, and more rows than a block holds: one direction for each input.
TEST_P(MechanismGradient, EqualsCentralDifferencesForManyRows) {
  for (const auto& [queries, keys] : {std::pair{5, 12}, std::pair{260, 260}}) {
    const auto problem = this->problem(2, queries, keys);
    const auto gradients = torch::autograd::grad({problem.loss()}, problem.inputs);
    for (std::size_t i = 0; i < problem.inputs.size(); ++i) {
      const auto direction = lcg(77, problem.inputs[i].sizes());
      const double expected = central_difference(problem.loss, problem.inputs[i], direction, 1e-7);
      const double scale = gradients[i].norm().item<double>();
      EXPECT_NEAR((gradients[i] * direction).sum().item<double>(), expected, 3e-6 * std::max(scale, 1.0))
          << "input " << i << ", " << queries << " queries";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, MechanismGradient, testing::ValuesIn(gradient_cases()),
                         [](const auto& c) { return c.param.name; });

// Remembers the largest allocation of a CPU tensor.
class LargestAllocation : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, std::int64_t size, std::size_t, std::size_t, c10::Device) override {
    bytes = std::max(bytes, size);
  }
  bool memoryProfilingEnabled() const override { return true; }

  std::int64_t bytes = 0;
};

class MechanismMemory : public testing::TestWithParam<std::string> {};

TEST_P(MechanismMemory, NoBufferGrowsWithTheSquareOfTheLength) {
  constexpr std::int64_t kLength = 4096;
  ModelConfig config = gradient_config(GetParam());
  if (GetParam() != "diff_softmax") config.heads = 1;  // which halves its heads
  config.width = 8 * config.heads;
  const auto mechanism = make_attention_mechanism(config);
  auto heads = random_heads(config, 1, kLength, kLength);
  for (auto* group : {&heads.q, &heads.k}) {
    for (auto& tensor : *group) {
      if (tensor.defined()) tensor = tensor.detach().to(at::kFloat).set_requires_grad(true);
    }
  }
  heads.v = heads.v.detach().to(at::kFloat).set_requires_grad(true);
  heads.hidden = heads.hidden.detach().to(at::kFloat);
  std::vector<at::Tensor> parameters;
  for (const auto& value : random_parameters(config)) parameters.push_back(value.detach().to(at::kFloat));
  const auto seen = std::make_shared<LargestAllocation>();
  {
    c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, seen);
    const auto loss = mechanism->attend(heads, parameters).sum();
    torch::autograd::grad({loss}, {heads.q[0], heads.k[0], heads.v});
    at::NoGradGuard no_gradient;
    mechanism->count(heads, parameters);
  }
  EXPECT_GT(seen->bytes, kLength * 8);  // the watch works
  EXPECT_LT(seen->bytes, kLength * kLength);
}

INSTANTIATE_TEST_SUITE_P(All, MechanismMemory, testing::ValuesIn(every_mechanism()),
                         [](const auto& name) { return name.param; });

class MechanismOnDevice : public testing::TestWithParam<std::string> {};

// Meta tensors have shapes and a device but no values: a tensor made on the CPU by oversight does not mix with them,
// and a value read by the host, which would stall a GPU, is an error.
TEST_P(MechanismOnDevice, NothingIsReadByTheHostOrMadeElsewhere) {
  const auto config = gradient_config(GetParam());
  const auto mechanism = make_attention_mechanism(config);
  auto heads = random_heads(config, 2, 300, 300);
  const auto moved = [](const at::Tensor& x) { return x.detach().to(at::kMeta, at::kFloat).requires_grad_(); };
  for (auto* group : {&heads.q, &heads.k}) {
    for (auto& tensor : *group) {
      if (tensor.defined()) tensor = moved(tensor);
    }
  }
  heads.v = moved(heads.v);
  heads.hidden = moved(heads.hidden);
  std::vector<at::Tensor> parameters;
  for (const auto& value : random_parameters(config)) parameters.push_back(moved(value));
  const auto output = mechanism->attend(heads, parameters);
  EXPECT_TRUE(output.is_meta());
  EXPECT_EQ(output.sizes(), at::IntArrayRef({2, 300, config.width}));
  for (const auto& gradient : torch::autograd::grad({output.sum()}, {heads.q[0], heads.k[0], heads.v})) {
    EXPECT_TRUE(gradient.is_meta());
  }
  at::NoGradGuard no_gradient;
  EXPECT_TRUE(mechanism->maps(heads, parameters).effective.is_meta());
  EXPECT_TRUE(mechanism->count(heads, parameters).zeros.is_meta());
}

INSTANTIATE_TEST_SUITE_P(Some, MechanismOnDevice,
                         testing::Values("entmax", "rela", "diff_rela", "tra", "tda", "asentmax"),
                         [](const auto& name) { return name.param; });

TEST(RowAttention, RefusesASecondDerivative) {
  const auto config = gradient_config("entmax");
  const auto heads = random_heads(config, 1, 4, 4);
  const auto output = make_attention_mechanism(config)->attend(heads, {});
  EXPECT_THROW(torch::autograd::grad({output.sum()}, {heads.q[0]}, {}, true, true), c10::Error);
}

}  // namespace
}  // namespace tda
