#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numbers>
#include <vector>

#include "lm/error.h"
#include "lm/model/safetensors.h"
#include "lm/training/adamw.h"
#include "lm/training/cosine_schedule.h"
#include "temporary_directory.h"

namespace tda {
namespace {

NamedParameter make_parameter(const std::string& name, std::vector<double> values, bool decay) {
  NamedParameter parameter;
  parameter.name = name;
  parameter.decay = decay;
  parameter.tensor = at::tensor(values, at::kFloat).requires_grad_(true);
  return parameter;
}

void set_gradient(const NamedParameter& parameter, std::vector<double> values) {
  parameter.tensor.mutable_grad() = at::tensor(values, at::kFloat);
}

// The equations of adamw.h in double, one scalar at a time.
struct ScalarAdamW {
  double weight, first = 0.0, second = 0.0;
  void step(double gradient, double rate, std::int64_t t, const AdamWOptions& o, bool decay) {
    if (decay) weight -= rate * o.weight_decay * weight;
    first = o.beta1 * first + (1 - o.beta1) * gradient;
    second = o.beta2 * second + (1 - o.beta2) * gradient * gradient;
    const double corrected = first / (1 - std::pow(o.beta1, t));
    weight -= rate * corrected / (std::sqrt(second / (1 - std::pow(o.beta2, t))) + o.epsilon);
  }
};

TEST(AdamWTest, FollowsTheEquations) {
  const AdamWOptions options{0.9, 0.95, 1e-8, 0.1};
  const std::vector<NamedParameter> parameters = {make_parameter("matrix", {1.0, -2.0, 0.5}, true),
                                                  make_parameter("gain", {1.0, -2.0, 0.5}, false)};
  AdamW optimizer(parameters, options);
  std::vector<ScalarAdamW> expected = {{1.0}, {-2.0}, {0.5}, {1.0}, {-2.0}, {0.5}};
  for (std::int64_t t = 1; t <= 20; ++t) {
    std::vector<double> gradient;
    for (int i = 0; i < 3; ++i) gradient.push_back(std::sin(static_cast<double>(t * (i + 1))));
    for (const NamedParameter& parameter : parameters) set_gradient(parameter, gradient);
    const double rate = 0.01 * static_cast<double>(t);
    optimizer.step(rate);
    for (std::size_t i = 0; i < 6; ++i) expected[i].step(gradient[i % 3], rate, t, options, i < 3);
  }
  EXPECT_EQ(optimizer.steps(), 20);
  for (std::size_t i = 0; i < 6; ++i) {
    // 20 updates of fp32 rounding, each at most one unit in the last place of a weight of size about 2.
    EXPECT_NEAR(parameters[i / 3].tensor.detach()[static_cast<std::int64_t>(i % 3)].item<double>(), expected[i].weight,
                20 * 2 * 1.2e-7)
        << i;
  }
}

TEST(AdamWTest, ClipsByTheGlobalNorm) {
  const std::vector<NamedParameter> parameters = {make_parameter("a", {0.0, 0.0}, true),
                                                  make_parameter("b", {0.0}, false)};
  AdamW optimizer(parameters, {});
  const auto set = [&] {
    set_gradient(parameters[0], {2.0, 3.0});
    set_gradient(parameters[1], {6.0});
  };
  set();
  EXPECT_DOUBLE_EQ(optimizer.clip_gradients(0.0), 7.0);
  EXPECT_FLOAT_EQ(parameters[1].tensor.grad()[0].item<float>(), 6.0F);
  EXPECT_DOUBLE_EQ(optimizer.clip_gradients(7.5), 7.0);
  EXPECT_FLOAT_EQ(parameters[1].tensor.grad()[0].item<float>(), 6.0F);
  EXPECT_DOUBLE_EQ(optimizer.clip_gradients(1.0), 7.0);
  EXPECT_FLOAT_EQ(parameters[0].tensor.grad()[0].item<float>(), 2.0F / 7.0F);
  EXPECT_FLOAT_EQ(parameters[1].tensor.grad()[0].item<float>(), 6.0F / 7.0F);
  set_gradient(parameters[1], {std::nan("")});
  EXPECT_TRUE(std::isnan(optimizer.clip_gradients(1.0)));
}

TEST(AdamWTest, SavedMomentsGoOnBitForBit) {
  const TemporaryDirectory directory;
  const auto run = [&](std::int64_t stop_at) {
    std::vector<NamedParameter> parameters = {make_parameter("a", {0.3, -0.7}, true),
                                              make_parameter("b", {1.0}, false)};
    auto optimizer = std::make_unique<AdamW>(parameters, AdamWOptions{});
    for (std::int64_t t = 0; t < 10; ++t) {
      if (t == stop_at) {
        optimizer->save(directory.path() / "moments.safetensors");
        optimizer = std::make_unique<AdamW>(parameters, AdamWOptions{});
        optimizer->load(directory.path() / "moments.safetensors", t);
      }
      set_gradient(parameters[0], {std::cos(static_cast<double>(t)), 0.1});
      set_gradient(parameters[1], {std::sin(static_cast<double>(t))});
      optimizer->step(0.01);
    }
    return at::cat({parameters[0].tensor.detach(), parameters[1].tensor.detach()});
  };
  EXPECT_TRUE(at::equal(run(-1), run(4)));
}

TEST(AdamWTest, ForeignMomentsAreRefusedByName) {
  const TemporaryDirectory directory;
  const auto file = directory.path() / "moments.safetensors";
  AdamW({make_parameter("a", {0.3, -0.7}, true)}, {}).save(file);
  AdamW other_shape({make_parameter("a", {0.3}, true)}, {});
  AdamW other_name({make_parameter("b", {0.3, -0.7}, true)}, {});
  for (AdamW* optimizer : {&other_shape, &other_name}) {
    try {
      optimizer->load(file, 1);
      ADD_FAILURE();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("first_moment."), std::string::npos) << error.what();
    }
  }
}

TEST(AdamWTest, LeavesFixedParametersAloneAndTakesAMissingGradientAsZero) {
  std::vector<NamedParameter> parameters = {make_parameter("fixed", {2.0}, false),
                                            make_parameter("idle", {2.0}, false)};
  parameters[0].tensor.requires_grad_(false);
  AdamW optimizer(parameters, {});
  EXPECT_EQ(optimizer.clip_gradients(1.0), 0.0);
  optimizer.step(0.1);
  EXPECT_EQ(parameters[0].tensor[0].item<double>(), 2.0);
  EXPECT_EQ(parameters[1].tensor.detach()[0].item<double>(), 2.0);
}

TEST(CosineScheduleTest, WarmsUpThenFollowsTheCosine) {
  const CosineSchedule schedule{1e-3, 1e-4, 10, 110};
  EXPECT_DOUBLE_EQ(schedule.at(0), 1e-4);
  EXPECT_DOUBLE_EQ(schedule.at(4), 5e-4);
  EXPECT_DOUBLE_EQ(schedule.at(9), 1e-3);
  EXPECT_DOUBLE_EQ(schedule.at(10), 1e-3);
  EXPECT_DOUBLE_EQ(schedule.at(60), 5.5e-4);
  EXPECT_DOUBLE_EQ(schedule.at(35), 1e-4 + 9e-4 * 0.5 * (1.0 + std::sqrt(0.5)));
  EXPECT_NEAR(schedule.at(109), 1e-4 + 9e-4 * 0.5 * (1.0 + std::cos(std::numbers::pi * 0.99)), 1e-18);
  const CosineSchedule no_warmup{1.0, 0.0, 0, 2};
  EXPECT_DOUBLE_EQ(no_warmup.at(0), 1.0);
  EXPECT_DOUBLE_EQ(no_warmup.at(1), 0.5);
  const CosineSchedule only_warmup{1.0, 0.0, 2, 2};
  EXPECT_DOUBLE_EQ(only_warmup.at(1), 1.0);
}

}  // namespace
}  // namespace tda
