// The operator from plain C++: pointers, strides, a workspace. No framework.
//
// A sequence of 512 positions in which every 16th position repeats an earlier direction: TDA attends to those repeats
// and gives every other pair a weight of exactly zero. Prints the output's size and the share of zeros, then checks one
// entry of a gradient against a difference quotient.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>
#include <vector>

#include "tda/attention.h"

namespace {

constexpr std::int64_t kBatch = 1, kHeads = 4, kLength = 512, kDim = 64;

// Scratch memory must be aligned to 64 bytes.
struct FreeAligned {
  void operator()(void* memory) const { std::free(memory); }
};
using Buffer = std::unique_ptr<void, FreeAligned>;

Buffer allocate(std::size_t bytes) { return Buffer(std::aligned_alloc(64, (bytes + 64) / 64 * 64)); }

void require(const tda::Status& status) {
  if (status.ok()) return;
  std::fprintf(stderr, "error: %s\n", status.message.c_str());
  std::exit(1);
}

// Stored as (batch, length, heads, dim), as a transformer's projections write it; the operator takes any strides.
constexpr std::int64_t kHeadStride = kDim, kRowStride = kHeads * kDim, kBatchStride = kLength * kRowStride;

tda::ConstTensor input(const std::vector<float>& x) { return {x.data(), kBatchStride, kHeadStride, kRowStride}; }
tda::Tensor output(std::vector<float>& x) { return {x.data(), kBatchStride, kHeadStride, kRowStride}; }

struct Model {
  std::vector<float> q1, k1, q2, k2, v, beta, lambda;
  tda::AttentionShape shape{kBatch, kHeads, kHeads, kLength, kLength, kDim, kDim};
  tda::AttentionOptions options;

  Model() : beta(kHeads, 1.0F), lambda(kHeads, 0.5F) {
    options.views = 2;
    std::mt19937 random(1);
    std::normal_distribution<float> normal;
    for (auto* x : {&q1, &k1, &q2, &k2, &v}) {
      x->resize(kBatch * kLength * kHeads * kDim);
      for (float& value : *x) value = normal(random);
    }
    for (std::int64_t t = 0; t < kLength; ++t) {
      for (std::int64_t c = 0; c < kRowStride; ++c) {
        const auto here = static_cast<std::size_t>(t * kRowStride + c);
        const auto first = static_cast<std::size_t>(t % 16 * kRowStride + c);
        k1[here] = k1[first] + 0.5F * k1[here];
        q1[here] = k1[first] + 0.5F * q1[here];
      }
    }
  }

  tda::AttentionInputs inputs() const {
    return {{input(q1), input(q2)}, {input(k1), input(k2)}, input(v), beta.data(), lambda.data()};
  }
};

struct Forward {
  std::vector<float> u = std::vector<float>(kBatch * kLength * kHeads * kDim);
  std::vector<std::int32_t> survivors = std::vector<std::int32_t>(kBatch * kHeads * kLength);
  Buffer index;

  explicit Forward(const Model& model) {
    index = allocate(tda::attention_survivor_index_bytes(model.shape, model.options));
    const std::size_t bytes = tda::attention_forward_workspace_bytes(model.shape, model.options);
    const Buffer workspace = allocate(bytes);
    require(tda::attention_forward(model.shape, model.options, model.inputs(),
                                   {output(u), survivors.data(), index.get()}, workspace.get(), bytes));
  }

  // The loss of this example: half the squared norm of the output, so that its gradient is the output itself.
  double loss() const {
    double sum = 0.0;
    for (float x : u) sum += 0.5 * x * x;
    return sum;
  }
};

}  // namespace

int main() {
  Model model;
  const Forward forward(model);
  std::int64_t survivors = 0;
  for (std::int32_t count : forward.survivors) survivors += count;
  const double pairs = 0.5 * kBatch * kHeads * kLength * (kLength + 1);
  std::printf("output: %zu numbers, exact zeros among weights: %.2f %%\n", forward.u.size(),
              100.0 * (1.0 - static_cast<double>(survivors) / pairs));

  std::vector<float> dv(model.v.size());
  tda::BackwardOutputs gradients;  // null pointers skip a gradient
  gradients.dv = output(dv);
  const std::size_t bytes = tda::attention_backward_workspace_bytes(model.shape, model.options);
  const Buffer workspace = allocate(bytes);
  require(tda::attention_backward(model.shape, model.options, model.inputs(), input(forward.u), forward.index.get(),
                                  gradients, workspace.get(), bytes));

  // The output is linear in v, so the loss is quadratic and the central difference exact but for rounding.
  constexpr std::size_t entry = 20 * kRowStride + 3;
  constexpr float step = 0.5F;
  const float original = model.v[entry];
  model.v[entry] = original + step;
  const double plus = Forward(model).loss();
  model.v[entry] = original - step;
  const double minus = Forward(model).loss();
  const double difference = (plus - minus) / (2.0 * step);
  std::printf("gradient of v[%zu]: %.6f, difference quotient: %.6f\n", entry, dv[entry], difference);

  tda::AttentionOptions wrong = model.options;
  wrong.power = 0.5;
  const tda::Status status = tda::attention_forward(model.shape, wrong, model.inputs(), {}, nullptr, 0);
  std::printf("a wrong argument: \"%s\"\n", status.message.c_str());
  return std::abs(dv[entry] - difference) < 1e-3 * (1.0 + std::abs(difference)) && !status.ok() ? 0 : 1;
}
