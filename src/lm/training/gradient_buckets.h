// Gradients of all processes added up while the backward pass still runs (Li et al., arXiv 2006.15704).
//
// The gradients of the model are views of a few flat buckets, filled in the reverse order of the parameters, which is
// about the order in which a backward pass finishes them. A bucket is on its way as soon as its last gradient is there.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstddef>
#include <cstdint>
#include <vector>

#include "lm/model/parameter.h"
#include "lm/training/process_group.h"

namespace tda {

class GradientBuckets {
 public:
  // Of the trainable ones of `parameters`, fp32; both must outlive the object. A bucket holds at least one gradient,
  // and more as long as they fit into `bucket_bytes`.
  GradientBuckets(const std::vector<NamedParameter>& parameters, ProcessGroup& group, std::int64_t bucket_bytes);
  ~GradientBuckets();
  GradientBuckets(const GradientBuckets&) = delete;
  GradientBuckets& operator=(const GradientBuckets&) = delete;

  // Sets all gradients to zero.
  void begin_step();
  // The next backward pass is the last of the step, and reduces.
  void reduce_in_next_backward() { reducing_ = true; }
  // Call after that pass: waits until every gradient is the sum over all processes.
  void finish_step();

  std::size_t bucket_count() const { return buckets_.size(); }

 private:
  class ReadyHook;
  struct Bucket {
    at::Tensor values;  // flat
    std::vector<at::Tensor> parameters;
    std::vector<at::Tensor> gradients;  // views of values
    std::size_t missing = 0;
    Collectives::Wait wait;
  };
  void close_bucket(Bucket bucket);
  void gradient_is_ready(std::size_t bucket);
  void start_ready_buckets();

  ProcessGroup& group_;
  std::vector<Bucket> buckets_;
  std::size_t started_ = 0;  // all processes start buckets in the same order
  bool reducing_ = false;
};

}  // namespace tda
