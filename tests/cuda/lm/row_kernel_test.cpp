// The CUDA kernels of row maps: attention through them beside attention through their twins on the same device, both
// against fp64 on the CPU; their bits; their memory. Skipped, and said so, where there is no device.
#include <ATen/ATen.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

#include "cuda_device.h"
#include "golden_input.h"
#include "lm/model/mechanisms/row_kernel.h"
#include "row_map_cases.h"
#include "tensor_operations.h"

namespace tda {
namespace {

using test::allowed_error;
using test::largest_error;
using test::lcg;
using test::row_map_cases;
using test::RowMapCase;

struct Shape {
  std::int64_t batch, heads, queries, keys, dim;
};

struct Problem {
  at::Tensor q, k, v, d_output;  // fp32, CPU

  // Scores of standard deviation about 2.
  explicit Problem(const Shape& s)
      : q(uniform(1, {s.batch, s.heads, s.queries, s.dim}) * (6 / std::sqrt(static_cast<double>(s.dim)))),
        k(uniform(2, {s.batch, s.heads, s.keys, s.dim})),
        v(uniform(3, {s.batch, s.heads, s.keys, s.dim})),
        d_output(uniform(6, {s.batch, s.heads, s.queries, s.dim})) {}

  static at::Tensor uniform(std::uint32_t seed, at::IntArrayRef shape) { return lcg(seed, shape).to(at::kFloat); }
};

// Output, dq, dk, dv. q and k have `type`, v and the output too unless `value_type` is shorter.
std::vector<at::Tensor> attention(const Problem& p, const RowMapPointer& map, at::Device device, at::ScalarType type,
                                  at::ScalarType value_type = at::kFloat) {
  const auto leaf = [&](const at::Tensor& x, at::ScalarType to) { return x.to(device, to).detach().requires_grad_(); };
  const auto q = leaf(p.q, type), k = leaf(p.k, type), v = leaf(p.v, value_type == at::kFloat ? type : value_type);
  const auto output = row_attention(q, k, v, map);
  const auto d_output = p.d_output.to(device, output.scalar_type());
  auto results = torch::autograd::grad({output}, {q, k, v}, {d_output});
  results.insert(results.begin(), output.detach());
  return results;
}

class RowKernelCase : public testing::TestWithParam<RowMapCase> {
 protected:
  void SetUp() override {
    if (!test::cuda_device().is_cuda()) GTEST_SKIP() << "no CUDA device";
  }
  const RowMapPointer& map() const { return GetParam().map; }

  // Few rows make the largest errors (lm/model/row_formula_test.cpp): the twin is asked several times, with queries
  // that differ in the last bit.
  void expect_twin(const Shape& shape, at::ScalarType value_type = at::kFloat) const {
    Problem problem(shape);
    for (at::Tensor* x : {&problem.q, &problem.k, &problem.v, &problem.d_output}) *x = x->to(value_type).to(at::kFloat);
    const auto exact = attention(problem, map(), at::kCPU, at::kDouble, at::kFloat);
    const auto ours = attention(problem, map(), test::cuda_device(), at::kFloat, value_type);
    std::vector<double> allowed(exact.size(), 0.0);
    for (std::uint32_t rounding = 0; rounding < 5; ++rounding) {
      Problem moved = problem;
      if (rounding > 0) {
        moved.q = moved.q + (moved.q * Problem::uniform(40 + rounding, moved.q.sizes()).sign() * 0x1p-24);
      }
      const auto twin_map = test::tensor_operations(map());
      const auto twin = attention(moved, twin_map, test::cuda_device(), at::kFloat, value_type);
      for (std::size_t i = 0; i < exact.size(); ++i) {
        allowed[i] = std::max(allowed[i], allowed_error(twin[i], exact[i]));
      }
    }
    const char* names[] = {"output", "dq", "dk", "dv"};
    for (std::size_t i = 0; i < exact.size(); ++i) {
      EXPECT_LE(largest_error(ours[i], exact[i]), allowed[i])
          << names[i] << ", " << shape.batch * shape.heads << " maps, " << shape.queries << " queries, " << shape.keys
          << " keys";
    }
  }
};

TEST_P(RowKernelCase, HasAKernel) {
  const auto scores = at::zeros({1, 1, 1}, at::TensorOptions().device(test::cuda_device()).dtype(at::kFloat));
  EXPECT_TRUE(kernel_formula(*map(), scores).has_value());
  EXPECT_FALSE(kernel_formula(*map(), scores.to(at::kDouble)).has_value());
  EXPECT_FALSE(kernel_formula(*test::tensor_operations(map()), scores).has_value());
}

TEST_P(RowKernelCase, FollowsTheTwin) {
  for (const Shape& shape : {Shape{1, 1, 1, 1, 64}, Shape{2, 3, 37, 37, 16}, Shape{1, 2, 5, 300, 64},
                             Shape{2, 2, 257, 257, 64}, Shape{1, 3, 1030, 1030, 32}}) {
    expect_twin(shape);
  }
}

// Rows of a warp, and of a block of threads.
TEST_P(RowKernelCase, FollowsTheTwinInLongRows) {
  for (const Shape& shape : {Shape{1, 1, 40, 2048, 16}, Shape{1, 1, 40, 2049, 16}, Shape{1, 1, 4500, 4500, 64}}) {
    expect_twin(shape);
  }
}

// Rows that take more shared memory than a kernel has unasked, in groups of maps; and rows that no block's shared
// memory holds.
TEST_P(RowKernelCase, FollowsTheTwinInRowsBeyondSharedMemory) {
  for (const Shape& shape : {Shape{2, 9, 20, 15000, 8}, Shape{1, 2, 20, 30000, 8}}) expect_twin(shape);
}

TEST_P(RowKernelCase, TakesValuesOfBf16) { expect_twin({1, 2, 300, 300, 64}, at::kBFloat16); }

TEST_P(RowKernelCase, RepeatsBitForBit) {
  const Problem problem({2, 3, 700, 700, 64});
  const auto first = attention(problem, map(), test::cuda_device(), at::kFloat);
  for (int repetition = 0; repetition < 20; ++repetition) {
    const auto again = attention(problem, map(), test::cuda_device(), at::kFloat);
    for (std::size_t i = 0; i < first.size(); ++i) ASSERT_TRUE(at::equal(first[i], again[i])) << i;
  }
}

struct BlockResult {
  at::Tensor weights, d_scores;
};

// A block (G, R, N) through the kernels alone.
BlockResult through_kernels(const RowMap& map, const at::Tensor& scores, const at::Tensor& d_weights) {
  const auto formula = kernel_formula(map, scores);
  const auto weights = scores.clone(), again = scores.clone(), d_scores = d_weights.clone();
  const auto statistics = replace_by_weights(*formula, weights);
  replace_by_gradients(*formula, again, statistics, d_scores);
  EXPECT_TRUE(at::equal(weights, again)) << "backward sees other weights";
  return {weights, d_scores};
}

// The same row alone, among others, and in a block so long that a block of threads takes it instead of a warp. What
// lies behind the keys that it sees is NaN.
TEST_P(RowKernelCase, BitsOfARowDependOnItAlone) {
  const auto device = test::cuda_device();
  const std::pair<std::int64_t, std::int64_t> visible_of_keys[] = {
      {1, 4}, {31, 40}, {300, 2900}, {1999, 2100}, {2048, 2049}, {11000, 11300}, {22520, 22535}};
  for (const auto& [visible, keys] : visible_of_keys) {
    const auto row = (lcg(5, {visible}) * 4).to(device, at::kFloat), d_row = lcg(7, {visible}).to(device, at::kFloat);
    const auto alone = through_kernels(*map(), row.reshape({1, 1, -1}), d_row.reshape({1, 1, -1}));
    const std::int64_t rows = keys - visible + 1;  // the first of them sees `visible` keys
    const auto scores = (lcg(9, {2, rows, keys}) * 4).to(device, at::kFloat);
    const auto d_weights = lcg(11, {2, rows, keys}).to(device, at::kFloat);
    for (const auto& [block, values] : {std::pair{&scores, &row}, std::pair{&d_weights, &d_row}}) {
      block->select(1, 0).fill_(std::numeric_limits<float>::quiet_NaN());
      block->select(1, 0).narrow(1, 0, visible).copy_(*values);
    }
    const auto among = through_kernels(*map(), scores, d_weights);
    for (std::int64_t g = 0; g < 2; ++g) {
      for (const auto& [x, y] : {std::pair{&alone.weights, &among.weights}, {&alone.d_scores, &among.d_scores}}) {
        const auto same_row = y->select(0, g).select(0, 0);
        EXPECT_TRUE(at::equal(x->flatten(), same_row.narrow(0, 0, visible))) << visible << " of " << keys;
        EXPECT_TRUE(same_row.narrow(0, visible, keys - visible).eq(0).all().item<bool>()) << visible << " " << keys;
      }
    }
  }
}

TEST_P(RowKernelCase, IsNotFiniteWhereTheCpuIsNot) {
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN(), kInfinity = std::numeric_limits<float>::infinity();
  for (const float bad : {kNan, kInfinity}) {
    for (const bool in_query : {true, false}) {
      Problem problem({1, 2, 37, 37, 16});
      (in_query ? problem.q : problem.k)[0][1][20][3] = bad;
      const auto cpu = attention(problem, map(), at::kCPU, at::kFloat);
      const auto ours = attention(problem, map(), test::cuda_device(), at::kFloat);
      for (const int i : {0, 1, 2}) {
        EXPECT_TRUE(at::equal(ours[i].isfinite().cpu(), cpu[i].isfinite())) << i << " " << bad << " " << in_query;
      }
      EXPECT_TRUE(ours[0][0][0].isfinite().all().item<bool>()) << "the other head";
      EXPECT_FALSE(ours[0][0][1].isfinite().all().item<bool>()) << "the head with " << bad;
    }
  }
}

TEST_P(RowKernelCase, TakesNothing) {
  const auto none = through_kernels(*map(), at::zeros({0, 3, 3}, at::TensorOptions().device(test::cuda_device())),
                                    at::zeros({0, 3, 3}, at::TensorOptions().device(test::cuda_device())));
  EXPECT_EQ(none.weights.numel(), 0);
}

// The greatest sum of the tensors that live at one time, and the greatest single one.
class DeviceMemory : public c10::MemoryReportingInfoBase {
 public:
  void reportMemoryUsage(void*, std::int64_t size, std::size_t total, std::size_t, c10::Device device) override {
    if (!device.is_cuda()) return;
    largest = std::max(largest, size);
    peak = std::max(peak, static_cast<std::int64_t>(total));
    if (start < 0) start = static_cast<std::int64_t>(total) - std::max<std::int64_t>(size, 0);
  }
  bool memoryProfilingEnabled() const override { return true; }

  std::int64_t largest = 0, peak = 0, start = -1;
};

TEST_P(RowKernelCase, NoBufferGrowsWithTheSquareOfTheLength) {
  constexpr std::int64_t kLength = 4096;
  for (const std::int64_t heads : {1, 12}) {
    const Problem problem({1, heads, kLength, kLength, 64});
    const auto memory = std::make_shared<DeviceMemory>();
    attention(problem, map(), test::cuda_device(), at::kFloat);  // after which cuBLAS has its workspace
    {
      c10::DebugInfoGuard guard(c10::DebugInfoKind::PROFILER_STATE, memory);
      attention(problem, map(), test::cuda_device(), at::kFloat);
    }
    const std::int64_t all_scores = heads * kLength * kLength * 4, values = heads * kLength * 64 * 4;
    EXPECT_GT(memory->largest, values / 2) << "the watch works";
    constexpr std::int64_t kRounding = 1 << 20;  // what PyTorch's allocator may add to a tensor
    EXPECT_LE(memory->largest, all_scores / 16 + kRounding);
    // Two blocks of scores, and what is in the size of q: the inputs and their gradients, some of them twice.
    EXPECT_LE(memory->peak - memory->start, all_scores / 8 + 14 * (values + kRounding));
    RecordProperty("peak_MiB_" + std::to_string(heads), static_cast<int>((memory->peak - memory->start) >> 20));
  }
}

INSTANTIATE_TEST_SUITE_P(All, RowKernelCase, testing::ValuesIn(row_map_cases()),
                         [](const auto& c) { return c.param.name; });

}  // namespace
}  // namespace tda
