// A sharded AdamW is the whole one, split: the same weights, the same file.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "lm/durable_file.h"
#include "lm/training/adamw.h"
#include "lm/training/shard.h"
#include "temporary_directory.h"

namespace tda {
namespace {

// 6 + 5 + 1 = 12 trainable elements, and one parameter that is not trained.
std::vector<NamedParameter> make_parameters() {
  std::vector<NamedParameter> parameters;
  const auto add = [&](const char* name, at::IntArrayRef shape, bool decay, bool trainable) {
    NamedParameter parameter;
    parameter.name = name;
    parameter.decay = decay;
    parameter.tensor =
        (at::arange(12, at::kFloat).slice(0, 0, c10::multiply_integers(shape)) - 2.5).view(shape).clone();
    parameter.tensor.requires_grad_(trainable);
    parameters.push_back(parameter);
  };
  add("matrix", {2, 3}, true, true);
  add("frozen", {4}, false, false);
  add("gain", {5}, false, true);
  add("lambda", {1}, false, true);
  return parameters;
}

void set_gradients(const std::vector<NamedParameter>& parameters, int step) {
  for (std::size_t i = 0; i < parameters.size(); ++i) {
    const at::Tensor& tensor = parameters[i].tensor;
    if (tensor.requires_grad()) tensor.mutable_grad() = (tensor.detach() * 0.3 + step + static_cast<double>(i)).sin();
  }
}

TEST(ShardTest, CoversAllAndNothingTwice) {
  const auto parameters = make_parameters();
  for (const int size : {1, 2, 5, 7, 12, 20}) {
    std::int64_t next = 0;
    for (int rank = 0; rank < size; ++rank) {
      const Shard shard = shard_of(parameters, rank, size);
      EXPECT_EQ(shard.total, 12);
      EXPECT_EQ(shard.first, next) << rank << " of " << size;
      EXPECT_EQ(shard.count, (12 + size - 1) / size);
      next += shard.count;
    }
    EXPECT_GE(next, 12);
  }
}

// 5 cuts through the middle of tensors, 20 leaves processes without any element.
class ShardedAdamWTest : public testing::TestWithParam<int> {};

TEST_P(ShardedAdamWTest, IsTheWholeOneSplit) {
  const TemporaryDirectory directory;
  const int size = GetParam();
  const auto whole_parameters = make_parameters();
  AdamW whole(whole_parameters, {});
  std::vector<std::vector<NamedParameter>> parameters;
  std::vector<AdamW> optimizers;
  for (int rank = 0; rank < size; ++rank) {
    parameters.push_back(make_parameters());
    optimizers.emplace_back(parameters.back(), AdamWOptions{}, shard_of(parameters.back(), rank, size));
  }
  const Shard first_shard = shard_of(whole_parameters, 0, size);
  const auto flat = [](const std::vector<NamedParameter>& of) {
    std::vector<at::Tensor> parts;
    for (const auto& parameter : of) {
      if (parameter.tensor.requires_grad()) parts.push_back(parameter.tensor.detach().view(-1));
    }
    return at::cat(parts);
  };
  const at::Tensor start = flat(whole_parameters);
  set_gradients(whole_parameters, 1);
  whole.step(0.1);
  for (int rank = 0; rank < size; ++rank) {
    const auto index = static_cast<std::size_t>(rank);
    set_gradients(parameters[index], 1);
    optimizers[index].step(0.1);
    // Its own elements are those of the whole optimizer but for the rounding of vector against scalar code, the others
    // as they were.
    const at::Tensor values = flat(parameters[index]), expected = start.clone();
    const std::int64_t first = std::min<std::int64_t>(rank * first_shard.count, 12);
    const std::int64_t count = std::min<std::int64_t>(first_shard.count, 12 - first);
    expected.narrow(0, first, count).copy_(flat(whole_parameters).narrow(0, first, count));
    EXPECT_TRUE(at::allclose(values, expected, 1e-6, 1e-6)) << rank << " of " << size;
  }
  // The parts of all processes, in the order in which moments() asks for them: first moments, then second.
  std::vector<std::vector<at::Tensor>> parts(2);
  for (AdamW& optimizer : optimizers) {
    std::size_t asked = 0;
    optimizer.moments([&](const at::Tensor& part) {
      parts[asked++].push_back(part);
      return at::zeros({part.numel() * size});
    });
  }
  std::size_t asked = 0;
  const auto gather = [&](const at::Tensor&) { return at::cat(parts[asked++]); };
  optimizers.front().save(directory.path() / "sharded", gather);
  AdamW copy(whole_parameters, {});
  copy.load(directory.path() / "sharded", 1);
  const auto expected = whole.moments(), found = copy.moments();
  ASSERT_EQ(found.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i) {
    EXPECT_EQ(found[i].first, expected[i].first);
    EXPECT_TRUE(at::allclose(found[i].second, expected[i].second, 1e-6, 1e-7)) << found[i].first;
  }
  // And back: each shard takes its part out of a whole file.
  AdamW& last = optimizers.back();
  last.load(directory.path() / "sharded", 1);
  asked = 0;
  last.moments([&](const at::Tensor& part) {
    EXPECT_TRUE(part.equal(parts[asked++].back()));
    return at::zeros({part.numel() * size});
  });
}

INSTANTIATE_TEST_SUITE_P(Sizes, ShardedAdamWTest, testing::Values(1, 2, 5, 20));

}  // namespace
}  // namespace tda
