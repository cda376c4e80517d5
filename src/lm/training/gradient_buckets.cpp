#include "lm/training/gradient_buckets.h"

#include <ATen/ops/zeros.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <memory>

namespace tda {

// Autograd calls it when the gradient of a parameter has been added to what was there.
class GradientBuckets::ReadyHook : public torch::autograd::PostAccumulateGradHook {
 public:
  ReadyHook(GradientBuckets& buckets, std::size_t bucket) : buckets_(buckets), bucket_(bucket) {}
  void operator()(const at::Tensor&) override { buckets_.gradient_is_ready(bucket_); }

 private:
  GradientBuckets& buckets_;
  std::size_t bucket_;
};

GradientBuckets::GradientBuckets(const std::vector<NamedParameter>& parameters, ProcessGroup& group,
                                 std::int64_t bucket_bytes)
    : group_(group) {
  Bucket open;
  std::int64_t bytes = 0;
  for (auto parameter = parameters.rbegin(); parameter != parameters.rend(); ++parameter) {
    if (!parameter->tensor.requires_grad()) continue;
    const auto size = static_cast<std::int64_t>(parameter->tensor.nbytes());
    if (!open.parameters.empty() && bytes + size > bucket_bytes) {
      close_bucket(std::move(open));
      open = {};
      bytes = 0;
    }
    open.parameters.push_back(parameter->tensor);
    bytes += size;
  }
  if (!open.parameters.empty()) close_bucket(std::move(open));
}

GradientBuckets::~GradientBuckets() {
  for (const Bucket& bucket : buckets_) {
    for (const at::Tensor& parameter : bucket.parameters) {
      torch::autograd::impl::set_post_acc_grad_hooks(parameter, nullptr);
    }
  }
}

void GradientBuckets::close_bucket(Bucket bucket) {
  std::int64_t count = 0;
  for (const at::Tensor& parameter : bucket.parameters) count += parameter.numel();
  bucket.values = at::zeros({count}, bucket.parameters.front().detach().options());
  std::int64_t first = 0;
  for (const at::Tensor& parameter : bucket.parameters) {
    bucket.gradients.push_back(bucket.values.narrow(0, first, parameter.numel()).view(parameter.sizes()));
    first += parameter.numel();
    torch::autograd::impl::set_post_acc_grad_hooks(parameter, std::make_unique<ReadyHook>(*this, buckets_.size()));
  }
  buckets_.push_back(std::move(bucket));
}

void GradientBuckets::begin_step() {
  const c10::NoGradGuard no_gradient;
  started_ = 0;
  for (Bucket& bucket : buckets_) {
    bucket.values.zero_();
    bucket.missing = bucket.parameters.size();
    // A gradient that is there already is added to in place, so that it stays the view that it is.
    for (std::size_t i = 0; i < bucket.parameters.size(); ++i) {
      bucket.parameters[i].mutable_grad() = bucket.gradients[i];
    }
  }
}

void GradientBuckets::gradient_is_ready(std::size_t bucket) {
  group_.advance();
  if (!reducing_) return;
  --buckets_[bucket].missing;
  start_ready_buckets();
}

void GradientBuckets::start_ready_buckets() {
  for (; started_ < buckets_.size() && buckets_[started_].missing == 0; ++started_) {
    buckets_[started_].wait = group_.start_all_reduce(buckets_[started_].values);
  }
}

void GradientBuckets::finish_step() {
  reducing_ = false;
  // Parameters that took no part in the loss.
  for (std::size_t i = started_; i < buckets_.size(); ++i) buckets_[i].missing = 0;
  start_ready_buckets();
  for (Bucket& bucket : buckets_) {
    group_.wait_for(bucket.wait);
    bucket.wait = nullptr;
  }
}

}  // namespace tda
