#include "lm/model/normalization.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>

#include "lm/model/accumulation_type.h"
#include "lm/model/cpu/row_kernels.h"

namespace tda {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr double kLayerNormEps = 1e-5;
constexpr std::int64_t kRowsPerTask = 16;
// Gain gradients are summed over this many fixed parts, so that the order of the sum does not depend on threads.
constexpr std::int64_t kGainParts = 16;

bool has_kernels(const at::Tensor& x, at::ScalarType type) {
  return x.is_cpu() && (type == at::kFloat || type == at::kBFloat16);
}

// f(T{}) with the C++ type of `type`.
template <typename F>
void with_type(at::ScalarType type, F&& f) {
  if (type == at::kBFloat16) {
    f(c10::BFloat16{});
  } else {
    f(float{});
  }
}

template <typename T>
T* optional_data(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.mutable_data_ptr<T>() : nullptr;
}

// Runs part(begin, end, gradient of the gain) over all rows and returns the gradient, fp32 (width).
template <typename F>
at::Tensor accumulate_gain(std::int64_t rows, std::int64_t width, F&& part) {
  const auto parts = at::zeros({kGainParts, width}, at::kFloat);
  float* data = parts.mutable_data_ptr<float>();
  at::parallel_for(0, kGainParts, 1, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t p = first; p < last; ++p) {
      part(rows * p / kGainParts, rows * (p + 1) / kGainParts, data + p * width);
    }
  });
  return parts.sum(0);
}

class AddLayerNorm : public torch::autograd::Function<AddLayerNorm> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& x_any,
                               const std::optional<at::Tensor>& delta_any, const at::Tensor& gain,
                               std::int64_t type_number) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto type = static_cast<at::ScalarType>(type_number);
    const auto x = x_any.contiguous();
    const auto delta = delta_any ? delta_any->contiguous() : at::Tensor();
    const std::int64_t width = x.size(-1), rows = x.numel() / std::max<std::int64_t>(width, 1);
    const auto sum = delta.defined() ? at::empty_like(x) : x;
    const auto normalized = at::empty(x.sizes(), x.options().dtype(type));
    const auto mean = at::empty({rows}, at::kFloat), rstd = at::empty({rows}, at::kFloat);
    with_type(type, [&](auto tag) {
      using T = decltype(tag);
      const cpu::AddLayerNormForward<T> kernel{x.const_data_ptr<float>(),
                                               optional_data<T>(delta),
                                               gain.const_data_ptr<float>(),
                                               delta.defined() ? sum.mutable_data_ptr<float>() : nullptr,
                                               normalized.mutable_data_ptr<T>(),
                                               mean.mutable_data_ptr<float>(),
                                               rstd.mutable_data_ptr<float>(),
                                               width,
                                               kLayerNormEps};
      at::parallel_for(0, rows, kRowsPerTask, [&](std::int64_t begin, std::int64_t end) { kernel.run(begin, end); });
    });
    context->save_for_backward({sum, gain, mean, rstd});
    context->saved_data["with_delta"] = delta.defined();
    context->saved_data["type"] = type_number;
    context->set_materialize_grads(false);
    return {delta.defined() ? sum : x_any, normalized};
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const auto &sum = saved[0], &gain = saved[1];
    const bool with_delta = context->saved_data["with_delta"].toBool();
    const auto d_sum = gradients[0].defined() ? gradients[0].contiguous() : at::Tensor();
    if (!gradients[1].defined()) {
      const auto type = static_cast<at::ScalarType>(context->saved_data["type"].toInt());
      return {d_sum, with_delta ? d_sum.to(type) : at::Tensor(), at::Tensor(), at::Tensor()};
    }
    const auto d_y = gradients[1].contiguous();
    const std::int64_t width = sum.size(-1), rows = sum.numel() / std::max<std::int64_t>(width, 1);
    const auto d_x = at::empty_like(sum);
    // In fp32 the gradient of delta is that of x; only another type needs a copy.
    const bool copy = with_delta && d_y.scalar_type() != at::kFloat;
    auto d_delta = copy ? at::empty(sum.sizes(), d_y.options()) : at::Tensor();
    at::Tensor d_gain;
    with_type(d_y.scalar_type(), [&](auto tag) {
      using T = decltype(tag);
      const cpu::AddLayerNormBackward<T> kernel{
          sum.const_data_ptr<float>(),      gain.const_data_ptr<float>(), saved[2].const_data_ptr<float>(),
          saved[3].const_data_ptr<float>(), d_y.const_data_ptr<T>(),      optional_data<float>(d_sum),
          d_x.mutable_data_ptr<float>(),    optional_data<T>(d_delta),    width};
      d_gain = accumulate_gain(
          rows, width, [&](std::int64_t begin, std::int64_t end, float* part) { kernel.run(begin, end, part); });
    });
    if (with_delta && !copy) d_delta = d_x;
    return {d_x, d_delta, d_gain, at::Tensor()};
  }
};

template <typename T>
cpu::HeadsView<T> heads_view(const at::Tensor& u) {
  return {static_cast<T*>(u.data_ptr()), u.stride(0), u.stride(1), u.stride(2)};
}

class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& u_any, const at::Tensor& gain_any, bool joint,
                            double eps) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto u = u_any.stride(-1) == 1 ? u_any : u_any.contiguous();
    const auto gain = gain_any.contiguous();
    const std::int64_t batch = u.size(0), heads = u.size(1), length = u.size(2), dim = u.size(3);
    const std::int64_t rows = batch * length;
    const auto y = at::empty({batch, length, heads * dim}, u.options());
    const auto rstd = at::empty({rows, joint ? 1 : heads}, at::kFloat);
    with_type(u.scalar_type(), [&](auto tag) {
      using T = decltype(tag);
      const cpu::RmsNormForward<T> kernel{heads_view<const T>(u),
                                          gain.const_data_ptr<float>(),
                                          y.mutable_data_ptr<T>(),
                                          rstd.mutable_data_ptr<float>(),
                                          length,
                                          heads,
                                          dim,
                                          joint,
                                          eps};
      at::parallel_for(0, rows, kRowsPerTask, [&](std::int64_t begin, std::int64_t end) { kernel.run(begin, end); });
    });
    context->save_for_backward({u, gain, rstd});
    context->saved_data["joint"] = joint;
    return y;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const auto &u = saved[0], &gain = saved[1];
    const auto d_y = gradients[0].contiguous();
    const std::int64_t batch = u.size(0), heads = u.size(1), length = u.size(2), dim = u.size(3);
    const auto d_u = at::empty({batch, length, heads, dim}, u.options()).transpose(1, 2);
    at::Tensor d_gain;
    with_type(u.scalar_type(), [&](auto tag) {
      using T = decltype(tag);
      const cpu::RmsNormBackward<T> kernel{heads_view<const T>(u),
                                           gain.const_data_ptr<float>(),
                                           saved[2].const_data_ptr<float>(),
                                           d_y.const_data_ptr<T>(),
                                           heads_view<T>(d_u),
                                           length,
                                           heads,
                                           dim,
                                           context->saved_data["joint"].toBool()};
      d_gain = accumulate_gain(batch * length, heads * dim, [&](std::int64_t begin, std::int64_t end, float* part) {
        kernel.run(begin, end, part);
      });
    });
    return {d_u, d_gain.view(gain.sizes()), at::Tensor(), at::Tensor()};
  }
};

at::Tensor rms_normalize(const at::Tensor& x, double eps) { return x * (x.square().mean(-1, true) + eps).rsqrt(); }

}  // namespace

ResidualNorm add_layer_norm(const at::Tensor& x, const at::Tensor& delta, const at::Tensor& gain, at::ScalarType type) {
  if (has_kernels(x, type)) {
    const auto present = delta.defined() ? std::optional(delta) : std::nullopt;
    const auto result = AddLayerNorm::apply(x, present, gain, static_cast<std::int64_t>(type));
    return {result[0], result[1]};
  }
  const auto sum = delta.defined() ? x + delta : x;
  return {sum, at::layer_norm(sum, gain.sizes(), gain, {}, kLayerNormEps).to(type)};
}

at::Tensor head_rms_norm(const at::Tensor& u, const at::Tensor& gain, double eps) {
  if (has_kernels(u, u.scalar_type())) return RmsNorm::apply(u, gain, false, eps);
  return (rms_normalize(widened(u.transpose(1, 2)), eps) * gain).to(u.dtype()).flatten(2);
}

at::Tensor joint_rms_norm(const at::Tensor& u, const at::Tensor& gain, double eps) {
  if (has_kernels(u, u.scalar_type())) return RmsNorm::apply(u, gain, true, eps);
  return (rms_normalize(widened(u.transpose(1, 2).flatten(2)), eps) * gain).to(u.dtype());
}

at::Tensor joint_layer_norm(const at::Tensor& u, const at::Tensor& gain, double eps) {
  const auto joined = widened(u.transpose(1, 2).flatten(2));
  return at::layer_norm(joined, gain.sizes(), gain, {}, eps).to(u.dtype());
}

}  // namespace tda
