// The mechanism around a RowMap: one view, no norm, scores from queries that carry every factor.
#pragma once

#include "lm/model/attention_mechanism.h"
#include "lm/model/mechanisms/row_attention.h"

namespace tda {

class RowMechanism : public AttentionMechanism {
 public:
  RowMechanism(const ModelConfig& config, RowMapPointer map);

  HeadLayout layout() const override { return layout_; }
  std::vector<ParameterSpec> parameters(std::int64_t) const override { return {}; }
  // Scores are computed in fp32 whatever the model computes in: the weights depend on differences of scores that bf16
  // does not resolve.
  at::ScalarType head_type(at::ScalarType, at::Device) const override { return at::kFloat; }

  at::Tensor attend(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override;
  AttentionMaps maps(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const override;

 protected:
  struct Factors {
    at::Tensor q, k;
  };
  // Whose products are the scores. q / sqrt(D) and k unless overridden.
  virtual Factors score_factors(const ProjectedHeads& heads, std::span<const at::Tensor> parameters) const;

 private:
  HeadLayout layout_;
  RowMapPointer map_;
};

}  // namespace tda
