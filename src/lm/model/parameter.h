// What a trainable tensor is: its declaration and its place in the model.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace tda {

// The part of the model a parameter is counted under.
enum class ParameterRole { kEmbedding, kHead, kAttention, kMlp, kNorm, kMechanism };

// Matrices start as normal(0, 0.02), those that write into the residual stream with less (gpt.cpp).
inline constexpr double kInitialDeviation = 0.02;

// Declared by the model and by each mechanism; says all that initialization, the optimizer and files need to know.
struct ParameterSpec {
  std::string name;  // relative to its owner, e.g. "query.weight"
  std::vector<std::int64_t> shape;
  ParameterRole role = ParameterRole::kMechanism;
  double mean = 0.0;
  double deviation = 0.0;  // start: normal(mean, deviation); 0 is the constant `mean`
  bool decay = false;      // weight decay applies (matrices only)
  bool trainable = true;
  std::optional<std::pair<double, double>> bounds =
      std::nullopt;     // the optimizer step projects back into [first, second]
  double growth = 0.0;  // added by every optimizer step: a clock that a schedule reads, neither trained nor counted
};

struct NamedParameter {
  std::string name;   // as in model.safetensors
  at::Tensor tensor;  // fp32 leaf; requires_grad() says whether it is trained
  bool decay = false;
  ParameterSpec spec;
};

struct ParameterCount {
  std::int64_t total = 0;
  std::int64_t embedding = 0;
  std::int64_t head = 0;
  std::int64_t attention = 0;  // projections
  std::int64_t mlp = 0;
  std::int64_t norm = 0;
  std::int64_t mechanism = 0;  // beta, lambda and the like
  // Parameters that take part in matrix products of every token: what FLOP estimates multiply by.
  std::int64_t matmul() const { return head + attention + mlp; }
};

}  // namespace tda
