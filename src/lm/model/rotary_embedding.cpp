#include "lm/model/rotary_embedding.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "lm/model/cpu/row_kernels.h"

namespace tda {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr std::int64_t kRowsPerTask = 16;

bool has_kernels(at::ScalarType type) { return type == at::kFloat || type == at::kBFloat16; }

// f(In{}, Out{}) with the C++ types of two kernel types.
template <typename F>
void with_types(at::ScalarType in, at::ScalarType out, F&& f) {
  const auto second = [&](auto first) {
    if (out == at::kBFloat16) {
      f(first, c10::BFloat16{});
    } else {
      f(first, float{});
    }
  };
  if (in == at::kBFloat16) {
    second(c10::BFloat16{});
  } else {
    second(float{});
  }
}

// The pieces of a joined row, in order; all but the last are turned.
struct Piece {
  std::int64_t offset, heads, dim;
};

std::vector<Piece> pieces_of(const HeadLayout& layout) {
  std::vector<Piece> pieces;
  const std::int64_t size = layout.heads * layout.head_dim;
  for (int i = 0; i < 2 * layout.views; ++i) pieces.push_back({i * size, layout.heads, layout.head_dim});
  pieces.push_back({2 * layout.views * size, layout.heads, layout.value_dim});
  return pieces;
}

// (B, T, C) -> the piece as (B, H, T, D), a view.
at::Tensor heads_of(const at::Tensor& joined, const Piece& piece) {
  return joined.narrow(-1, piece.offset, piece.heads * piece.dim)
      .view({joined.size(0), joined.size(1), piece.heads, piece.dim})
      .transpose(1, 2);
}

class SplitHeads : public torch::autograd::Function<SplitHeads> {
 public:
  static variable_list forward(AutogradContext* context, const at::Tensor& joined_any, const at::Tensor& cosine,
                               const at::Tensor& sine, std::int64_t views, std::int64_t heads, std::int64_t head_dim,
                               std::int64_t value_dim, std::int64_t type_number) {
    at::AutoDispatchBelowADInplaceOrView guard;
    const auto joined = joined_any.contiguous();
    const auto type = static_cast<at::ScalarType>(type_number);
    const auto pieces = pieces_of({static_cast<int>(views), heads, head_dim, value_dim});
    const std::int64_t length = joined.size(1), rows = joined.size(0) * length, width = joined.size(2);
    const auto turned = at::empty(joined.sizes(), joined.options().dtype(type));
    with_types(joined.scalar_type(), type, [&](auto in_tag, auto out_tag) {
      const auto* in = joined.const_data_ptr<decltype(in_tag)>();
      auto* out = turned.mutable_data_ptr<decltype(out_tag)>();
      const float *cosines = cosine.const_data_ptr<float>(), *sines = sine.const_data_ptr<float>();
      at::parallel_for(0, rows, kRowsPerTask, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          const std::int64_t at = row % length * (head_dim / 2);
          for (const auto& [offset, count, dim] : pieces) {
            const auto* from = in + row * width + offset;
            auto* to = out + row * width + offset;
            if (&offset == &pieces.back().offset) {
              cpu::copy_row(from, dim, to, dim, count, dim);
            } else {
              cpu::turn_row(from, dim, to, dim, count, dim, cosines + at, sines + at, 1.0f);
            }
          }
        }
      });
    });
    context->save_for_backward({cosine, sine});
    context->saved_data["layout"] = std::vector<std::int64_t>{views, heads, head_dim, value_dim};
    context->saved_data["sizes"] = joined.sizes().vec();
    context->saved_data["type"] = static_cast<std::int64_t>(joined.scalar_type());
    context->set_materialize_grads(false);
    variable_list outputs;
    for (const auto& piece : pieces) outputs.push_back(heads_of(turned, piece));
    return outputs;
  }

  static variable_list backward(AutogradContext* context, const variable_list& gradients) {
    const auto saved = context->get_saved_variables();
    const auto layout = context->saved_data["layout"].toIntVector();
    const auto sizes = context->saved_data["sizes"].toIntVector();
    const auto type = static_cast<at::ScalarType>(context->saved_data["type"].toInt());
    const auto pieces = pieces_of({static_cast<int>(layout[0]), layout[1], layout[2], layout[3]});
    const auto d_joined = at::empty(sizes, saved[0].options().dtype(type));
    for (std::size_t i = 0; i < pieces.size(); ++i) {
      if (!gradients[i].defined()) {
        d_joined.narrow(-1, pieces[i].offset, pieces[i].heads * pieces[i].dim).zero_();
        continue;
      }
      const bool turned = i + 1 < pieces.size();
      turn_back(gradients[i].stride(-1) == 1 ? gradients[i] : gradients[i].contiguous(), d_joined, pieces[i],
                turned ? saved[0] : at::Tensor(), saved[1]);
    }
    variable_list result(8);
    result[0] = d_joined;
    return result;
  }

 private:
  // Writes the gradient of one piece into its columns of d_joined; `cosine` is undefined for the value.
  static void turn_back(const at::Tensor& gradient, const at::Tensor& d_joined, const Piece& piece,
                        const at::Tensor& cosine, const at::Tensor& sine) {
    const std::int64_t length = d_joined.size(1), rows = d_joined.size(0) * length, width = d_joined.size(2);
    with_types(gradient.scalar_type(), d_joined.scalar_type(), [&](auto in_tag, auto out_tag) {
      const auto* in = gradient.const_data_ptr<decltype(in_tag)>();
      auto* out = d_joined.mutable_data_ptr<decltype(out_tag)>() + piece.offset;
      at::parallel_for(0, rows, kRowsPerTask, [&](std::int64_t begin, std::int64_t end) {
        for (std::int64_t row = begin; row < end; ++row) {
          const std::int64_t b = row / length, t = row % length;
          const auto* from = in + b * gradient.stride(0) + t * gradient.stride(2);
          auto* to = out + row * width;
          if (!cosine.defined()) {
            cpu::copy_row(from, gradient.stride(1), to, piece.dim, piece.heads, piece.dim);
          } else {
            const std::int64_t at = t * (piece.dim / 2);
            cpu::turn_row(from, gradient.stride(1), to, piece.dim, piece.heads, piece.dim,
                          cosine.const_data_ptr<float>() + at, sine.const_data_ptr<float>() + at, -1.0f);
          }
        }
      });
    });
  }
};

// The same by ATen, for devices and types without a kernel.
variable_list split_heads(const at::Tensor& joined, const at::Tensor& cosine, const at::Tensor& sine,
                          const HeadLayout& layout, at::ScalarType type) {
  variable_list outputs;
  for (const auto& piece : pieces_of(layout)) outputs.push_back(heads_of(joined, piece).to(type));
  for (std::size_t i = 0; i + 1 < outputs.size(); ++i) {
    const auto halves = outputs[i].chunk(2, -1);
    outputs[i] = at::cat({halves[0] * cosine - halves[1] * sine, halves[1] * cosine + halves[0] * sine}, -1).to(type);
  }
  return outputs;
}

}  // namespace

RotaryEmbedding::RotaryEmbedding(std::int64_t head_dim, double theta, double scaling)
    : head_dim_(head_dim),
      base_(scaling == 1.0
                ? theta
                : theta * std::pow(scaling, static_cast<double>(head_dim) / static_cast<double>(head_dim - 2))) {}

void RotaryEmbedding::extend(std::int64_t positions, at::Device device) {
  if (cosine_.defined() && cosine_.size(0) >= positions && cosine_.device() == device) return;
  std::int64_t rows = 256;
  while (rows < positions) rows *= 2;
  // Angles in double: an fp32 position * frequency is off by 1e-3 rad at position 2^14.
  const auto dimension = at::arange(head_dim_ / 2, at::kDouble);
  const auto frequency = at::pow(base_, dimension * (-2.0 / static_cast<double>(head_dim_)));
  const auto angle = at::outer(at::arange(rows, at::kDouble), frequency);
  cosine_ = angle.cos().to(device, at::kFloat);
  sine_ = angle.sin().to(device, at::kFloat);
}

ProjectedHeads RotaryEmbedding::split(const at::Tensor& joined, const HeadLayout& layout, std::int64_t first_position,
                                      at::ScalarType type) {
  const std::int64_t length = joined.size(1);
  extend(first_position + length, joined.device());
  const auto cosine = cosine_.narrow(0, first_position, length), sine = sine_.narrow(0, first_position, length);
  const bool kernels = joined.is_cpu() && has_kernels(joined.scalar_type()) && has_kernels(type);
  const auto parts = kernels ? SplitHeads::apply(joined, cosine, sine, layout.views, layout.heads, layout.head_dim,
                                                 layout.value_dim, static_cast<std::int64_t>(type))
                             : split_heads(joined, cosine, sine, layout, type);
  ProjectedHeads heads;
  for (int view = 0; view < layout.views; ++view) {
    heads.q[view] = parts[2 * view];
    heads.k[view] = parts[2 * view + 1];
  }
  heads.v = parts.back();
  return heads;
}

}  // namespace tda
