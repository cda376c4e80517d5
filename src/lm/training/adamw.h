// AdamW (Loshchilov and Hutter, arXiv 1711.05101): Adam with bias correction and decoupled weight decay.
//
//   w -= lr·decay·w (matrices only);  m = β1·m + (1-β1)·g;  v = β2·v + (1-β2)·g²
//   w -= lr · (m / (1-β1^t)) / (sqrt(v / (1-β2^t)) + ε)
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <filesystem>
#include <vector>

#include "lm/model/parameter.h"

namespace tda {

struct AdamWOptions {
  double beta1 = 0.9;
  double beta2 = 0.95;
  double epsilon = 1e-8;
  double weight_decay = 0.1;
};

class AdamW {
 public:
  // Parameters without requires_grad() are left alone. Moments start at zero on the device of their parameter.
  AdamW(const std::vector<NamedParameter>& parameters, const AdamWOptions& options);

  // Scales all gradients by min(1, limit / norm) where norm is their global L2 norm, and returns norm. limit 0 only
  // measures. A parameter that took no part in the loss counts as zero.
  double clip_gradients(double limit);

  // One update from the gradients that the parameters hold.
  void step(double learning_rate);

  void clear_gradients();

  // Updates done so far: t of the bias correction.
  std::int64_t steps() const { return steps_; }

  // The moments as safetensors, `first_moment.NAME` and `second_moment.NAME`, fp32.
  void save(const std::filesystem::path& file) const;
  // Throws Error naming file and tensor when one is missing or has another shape.
  void load(const std::filesystem::path& file, std::int64_t steps);

 private:
  struct Group {
    std::vector<std::string> names;
    std::vector<at::Tensor> parameters, first_moments, second_moments, steps;
    double weight_decay = 0.0;
  };
  static std::vector<at::Tensor> gradients(const Group& group);

  AdamWOptions options_;
  std::vector<Group> groups_;  // with decay, without
  std::int64_t steps_ = 0;
};

}  // namespace tda
