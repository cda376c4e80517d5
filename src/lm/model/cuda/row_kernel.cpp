#include "lm/model/mechanisms/row_kernel.h"

#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "lm/model/cuda/row_kernels.h"

namespace tda {
namespace {

void check(const char* name, const char* part, cudaError_t error) {
  TORCH_CHECK(error == cudaSuccess, "CUDA kernel ", name, "_", part, ": ", cudaGetErrorString(error));
}

// Asked of PyTorch through its own registry, so that nothing here links its CUDA half (training/training_device.cpp).
cudaStream_t current_stream(const at::Tensor& x) {
  const c10::impl::VirtualGuardImpl driver(at::kCUDA);
  return static_cast<cudaStream_t>(driver.getStreamNativeHandle(driver.getStream(x.device())));
}

cuda::RowBlockView view(const at::Tensor& scores, const at::Tensor& statistics) {
  return {.scores = scores.mutable_data_ptr<float>(),
          .statistics = statistics.mutable_data_ptr<float>(),
          .d_weights = nullptr,
          .maps = scores.size(0),
          .rows = scores.size(1),
          .keys = scores.size(2)};
}

}  // namespace

std::optional<RowFormula> kernel_formula(const RowMap& map, const at::Tensor& scores) {
  if (!scores.is_cuda() || scores.scalar_type() != at::kFloat) return std::nullopt;
  return map.formula();
}

at::Tensor replace_by_weights(const RowFormula& formula, const at::Tensor& scores) {
  TORCH_CHECK(scores.is_contiguous(), "scores of a row kernel: expected contiguous");
  return std::visit(
      [&](const auto& row) {
        const auto statistics = at::empty({scores.size(0), scores.size(1), row.kStatistics}, scores.options());
        if (scores.numel() == 0) return statistics;
        const c10::DeviceGuard device(scores.device());
        check(row.kName, "weights", cuda::launch_row_weights(row, view(scores, statistics), current_stream(scores)));
        return statistics;
      },
      formula);
}

void replace_by_gradients(const RowFormula& formula, const at::Tensor& scores, const at::Tensor& statistics,
                          const at::Tensor& d_weights) {
  TORCH_CHECK(scores.is_contiguous() && d_weights.is_contiguous() && statistics.is_contiguous() &&
                  d_weights.sizes() == scores.sizes() && d_weights.scalar_type() == at::kFloat,
              "tensors of a row kernel: expected contiguous fp32 of one shape");
  if (scores.numel() == 0) return;
  const c10::DeviceGuard device(scores.device());
  auto block = view(scores, statistics);
  block.d_weights = d_weights.mutable_data_ptr<float>();
  std::visit(
      [&](const auto& row) {
        check(row.kName, "gradients", cuda::launch_row_gradients(row, block, current_stream(scores)));
      },
      formula);
}

}  // namespace tda
