#include "lm/model/cpu/row_kernels.h"

#include <c10/util/BFloat16.h>

#include <cmath>

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "lm/model/cpu/row_kernels.cpp"
#include "hwy/foreach_target.h"  // compiles this file once per instruction set

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace tda::cpu::HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using Wide = hn::ScalableTag<float>;
using One = hn::CappedTag<float, 1>;

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const float* p) {
  return hn::LoadU(d, p);
}

template <class D>
HWY_INLINE hn::Vec<D> load(D d, const c10::BFloat16* p) {
  const hn::Rebind<std::uint16_t, D> half;
  const hn::RebindToUnsigned<D> whole;
  return hn::BitCast(d, hn::ShiftLeft<16>(hn::PromoteTo(whole, hn::LoadU(half, reinterpret_cast<const uint16_t*>(p)))));
}

template <class D>
HWY_INLINE void store(D d, hn::Vec<D> v, float* p) {
  hn::StoreU(v, d, p);
}

// Round to nearest even. A NaN, whose payload the rounding could carry into the sign, becomes the quiet NaN.
template <class D>
HWY_INLINE void store(D, hn::Vec<D> v, c10::BFloat16* p) {
  const hn::Rebind<std::uint16_t, D> half;
  const hn::RebindToUnsigned<D> whole;
  const hn::RebindToSigned<D> number;
  const auto bits = hn::BitCast(whole, v);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(whole, 1));
  const auto rounded = hn::Add(bits, hn::Add(odd, hn::Set(whole, 0x7FFF)));
  const auto kept = hn::IfThenElse(hn::RebindMask(whole, hn::IsNaN(v)), hn::Set(whole, 0x7FC00000u), rounded);
  hn::StoreU(hn::DemoteTo(half, hn::BitCast(number, hn::ShiftRight<16>(kept))), half, reinterpret_cast<uint16_t*>(p));
}

// body(tag, c) for whole vectors, then for single values.
template <class F>
HWY_INLINE void for_columns(std::int64_t count, F&& body) {
  const Wide wide;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(wide));
  std::int64_t c = 0;
  for (; c + lanes <= count; c += lanes) body(wide, c);
  for (; c < count; ++c) body(One(), c);
}

// Sum over columns of value(tag, c).
template <class F>
HWY_INLINE float sum_columns(std::int64_t count, F&& value) {
  const Wide wide;
  const auto lanes = static_cast<std::int64_t>(hn::Lanes(wide));
  auto sum = hn::Zero(wide);
  std::int64_t c = 0;
  for (; c + lanes <= count; c += lanes) sum = hn::Add(sum, value(wide, c));
  float total = hn::GetLane(hn::SumOfLanes(wide, sum));
  for (; c < count; ++c) total += hn::GetLane(value(One(), c));
  return total;
}

template <typename T>
void add_layer_norm_forward(const AddLayerNormForward<T>& a, std::int64_t begin, std::int64_t end) {
  const auto width = static_cast<float>(a.width);
  for (std::int64_t row = begin; row < end; ++row) {
    const float* sum = a.x + row * a.width;
    if (a.delta != nullptr) {
      float* out = a.sum + row * a.width;
      for_columns(a.width, [&](auto d, std::int64_t c) {
        store(d, hn::Add(load(d, sum + c), load(d, a.delta + row * a.width + c)), out + c);
      });
      sum = out;
    }
    const float mean = sum_columns(a.width, [&](auto d, std::int64_t c) { return load(d, sum + c); }) / width;
    const float variance = sum_columns(a.width,
                                       [&](auto d, std::int64_t c) {
                                         const auto centred = hn::Sub(load(d, sum + c), hn::Set(d, mean));
                                         return hn::Mul(centred, centred);
                                       }) /
                           width;
    const float rstd = 1.0f / std::sqrt(variance + static_cast<float>(a.eps));
    for_columns(a.width, [&](auto d, std::int64_t c) {
      const auto normal = hn::Mul(hn::Sub(load(d, sum + c), hn::Set(d, mean)), hn::Set(d, rstd));
      store(d, hn::Mul(normal, load(d, a.gain + c)), a.y + row * a.width + c);
    });
    a.mean[row] = mean;
    a.rstd[row] = rstd;
  }
}

template <typename T>
void add_layer_norm_backward(const AddLayerNormBackward<T>& a, std::int64_t begin, std::int64_t end,
                             float* gain_gradient) {
  const auto width = static_cast<float>(a.width);
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t at = row * a.width;
    const auto normal = [&](auto d, std::int64_t c) {
      return hn::Mul(hn::Sub(load(d, a.sum + at + c), hn::Set(d, a.mean[row])), hn::Set(d, a.rstd[row]));
    };
    const auto cotangent = [&](auto d, std::int64_t c) {
      return hn::Mul(load(d, a.d_y + at + c), load(d, a.gain + c));
    };
    const float mean = sum_columns(a.width, cotangent) / width;
    const float slope =
        sum_columns(a.width, [&](auto d, std::int64_t c) { return hn::Mul(cotangent(d, c), normal(d, c)); }) / width;
    for_columns(a.width, [&](auto d, std::int64_t c) {
      const auto x = normal(d, c);
      store(d, hn::MulAdd(load(d, a.d_y + at + c), x, load(d, gain_gradient + c)), gain_gradient + c);
      const auto centred = hn::Sub(hn::Sub(cotangent(d, c), hn::Set(d, mean)), hn::Mul(x, hn::Set(d, slope)));
      auto gradient = hn::Mul(centred, hn::Set(d, a.rstd[row]));
      if (a.d_sum != nullptr) gradient = hn::Add(gradient, load(d, a.d_sum + at + c));
      store(d, gradient, a.d_x + at + c);
      if (a.d_delta != nullptr) store(d, gradient, a.d_delta + at + c);
    });
  }
}

template <typename T>
void rms_norm_forward(const RmsNormForward<T>& a, std::int64_t begin, std::int64_t end) {
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t b = row / a.length, t = row % a.length;
    const auto squares = [&](std::int64_t h) {
      const T* u = a.u.row(b, h, t);
      return sum_columns(a.dim, [&](auto d, std::int64_t c) {
        const auto x = load(d, u + c);
        return hn::Mul(x, x);
      });
    };
    float rstd = 0;
    if (a.joint) {
      float sum = 0;
      for (std::int64_t h = 0; h < a.heads; ++h) sum += squares(h);
      rstd = 1.0f / std::sqrt(sum / static_cast<float>(a.heads * a.dim) + static_cast<float>(a.eps));
      a.rstd[row] = rstd;
    }
    for (std::int64_t h = 0; h < a.heads; ++h) {
      if (!a.joint) {
        rstd = 1.0f / std::sqrt(squares(h) / static_cast<float>(a.dim) + static_cast<float>(a.eps));
        a.rstd[row * a.heads + h] = rstd;
      }
      const T* u = a.u.row(b, h, t);
      const std::int64_t first = h * a.dim;
      T* y = a.y + row * a.heads * a.dim + first;
      for_columns(a.dim, [&](auto d, std::int64_t c) {
        store(d, hn::Mul(hn::Mul(load(d, u + c), hn::Set(d, rstd)), load(d, a.gain + first + c)), y + c);
      });
    }
  }
}

template <typename T>
void rms_norm_backward(const RmsNormBackward<T>& a, std::int64_t begin, std::int64_t end, float* gain_gradient) {
  for (std::int64_t row = begin; row < end; ++row) {
    const std::int64_t b = row / a.length, t = row % a.length;
    const T* d_y = a.d_y + row * a.heads * a.dim;
    const auto products = [&](std::int64_t h, float rstd) {
      const T* u = a.u.row(b, h, t);
      const std::int64_t first = h * a.dim;
      return sum_columns(a.dim, [&](auto d, std::int64_t c) {
        const auto cotangent = hn::Mul(load(d, d_y + first + c), load(d, a.gain + first + c));
        return hn::Mul(cotangent, hn::Mul(load(d, u + c), hn::Set(d, rstd)));
      });
    };
    float rstd = 0, slope = 0;
    if (a.joint) {
      rstd = a.rstd[row];
      for (std::int64_t h = 0; h < a.heads; ++h) slope += products(h, rstd);
      slope /= static_cast<float>(a.heads * a.dim);
    }
    for (std::int64_t h = 0; h < a.heads; ++h) {
      if (!a.joint) {
        rstd = a.rstd[row * a.heads + h];
        slope = products(h, rstd) / static_cast<float>(a.dim);
      }
      const T* u = a.u.row(b, h, t);
      T* d_u = a.d_u.row(b, h, t);
      const std::int64_t first = h * a.dim;
      for_columns(a.dim, [&](auto d, std::int64_t c) {
        const auto x = hn::Mul(load(d, u + c), hn::Set(d, rstd));
        const auto d_out = load(d, d_y + first + c);
        float* gradient = gain_gradient + first + c;
        store(d, hn::MulAdd(d_out, x, load(d, gradient)), gradient);
        const auto cotangent = hn::Mul(d_out, load(d, a.gain + first + c));
        store(d, hn::Mul(hn::Sub(cotangent, hn::Mul(x, hn::Set(d, slope))), hn::Set(d, rstd)), d_u + c);
      });
    }
  }
}

template <typename In, typename Out>
void turn(const In* in, std::int64_t in_stride, Out* out, std::int64_t out_stride, std::int64_t heads, std::int64_t dim,
          const float* cosine, const float* sine, float direction) {
  const std::int64_t half = dim / 2;
  for (std::int64_t h = 0; h < heads; ++h) {
    const In* x = in + h * in_stride;
    Out* y = out + h * out_stride;
    for_columns(half, [&](auto d, std::int64_t c) {
      const auto first = load(d, x + c), second = load(d, x + half + c);
      const auto cos = load(d, cosine + c), sin = hn::Mul(load(d, sine + c), hn::Set(d, direction));
      store(d, hn::Sub(hn::Mul(first, cos), hn::Mul(second, sin)), y + c);
      store(d, hn::Add(hn::Mul(second, cos), hn::Mul(first, sin)), y + half + c);
    });
  }
}

template <typename In, typename Out>
void copy(const In* in, std::int64_t in_stride, Out* out, std::int64_t out_stride, std::int64_t heads,
          std::int64_t dim) {
  for (std::int64_t h = 0; h < heads; ++h) {
    for_columns(dim,
                [&](auto d, std::int64_t c) { store(d, load(d, in + h * in_stride + c), out + h * out_stride + c); });
  }
}

// Dynamic dispatch takes functions, not templates: one name per combination of types.
using Half = c10::BFloat16;
#define TDA_ROW_KERNELS(SUFFIX, T)                                                                               \
  void AddLayerNormForward##SUFFIX(const AddLayerNormForward<T>& a, std::int64_t begin, std::int64_t end) {      \
    add_layer_norm_forward(a, begin, end);                                                                       \
  }                                                                                                              \
  void AddLayerNormBackward##SUFFIX(const AddLayerNormBackward<T>& a, std::int64_t begin, std::int64_t end,      \
                                    float* gain) {                                                               \
    add_layer_norm_backward(a, begin, end, gain);                                                                \
  }                                                                                                              \
  void RmsNormForward##SUFFIX(const RmsNormForward<T>& a, std::int64_t begin, std::int64_t end) {                \
    rms_norm_forward(a, begin, end);                                                                             \
  }                                                                                                              \
  void RmsNormBackward##SUFFIX(const RmsNormBackward<T>& a, std::int64_t begin, std::int64_t end, float* gain) { \
    rms_norm_backward(a, begin, end, gain);                                                                      \
  }
#define TDA_HEAD_KERNELS(SUFFIX, In, Out)                                                                        \
  void Turn##SUFFIX(const In* in, std::int64_t in_stride, Out* out, std::int64_t out_stride, std::int64_t heads, \
                    std::int64_t dim, const float* cosine, const float* sine, float direction) {                 \
    turn(in, in_stride, out, out_stride, heads, dim, cosine, sine, direction);                                   \
  }                                                                                                              \
  void Copy##SUFFIX(const In* in, std::int64_t in_stride, Out* out, std::int64_t out_stride, std::int64_t heads, \
                    std::int64_t dim) {                                                                          \
    copy(in, in_stride, out, out_stride, heads, dim);                                                            \
  }
TDA_ROW_KERNELS(Float, float)
TDA_ROW_KERNELS(Half, Half)
TDA_HEAD_KERNELS(FloatFloat, float, float)
TDA_HEAD_KERNELS(FloatHalf, float, Half)
TDA_HEAD_KERNELS(HalfFloat, Half, float)
TDA_HEAD_KERNELS(HalfHalf, Half, Half)
#undef TDA_ROW_KERNELS
#undef TDA_HEAD_KERNELS

}  // namespace tda::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace tda::cpu {

#define TDA_ROW_KERNELS(SUFFIX, T)                                                                      \
  HWY_EXPORT(AddLayerNormForward##SUFFIX);                                                              \
  HWY_EXPORT(AddLayerNormBackward##SUFFIX);                                                             \
  HWY_EXPORT(RmsNormForward##SUFFIX);                                                                   \
  HWY_EXPORT(RmsNormBackward##SUFFIX);                                                                  \
  template <>                                                                                           \
  void AddLayerNormForward<T>::run(std::int64_t begin, std::int64_t end) const {                        \
    HWY_DYNAMIC_DISPATCH(AddLayerNormForward##SUFFIX)(*this, begin, end);                               \
  }                                                                                                     \
  template <>                                                                                           \
  void AddLayerNormBackward<T>::run(std::int64_t begin, std::int64_t end, float* gain_gradient) const { \
    HWY_DYNAMIC_DISPATCH(AddLayerNormBackward##SUFFIX)(*this, begin, end, gain_gradient);               \
  }                                                                                                     \
  template <>                                                                                           \
  void RmsNormForward<T>::run(std::int64_t begin, std::int64_t end) const {                             \
    HWY_DYNAMIC_DISPATCH(RmsNormForward##SUFFIX)(*this, begin, end);                                    \
  }                                                                                                     \
  template <>                                                                                           \
  void RmsNormBackward<T>::run(std::int64_t begin, std::int64_t end, float* gain_gradient) const {      \
    HWY_DYNAMIC_DISPATCH(RmsNormBackward##SUFFIX)(*this, begin, end, gain_gradient);                    \
  }
#define TDA_HEAD_KERNELS(SUFFIX, In, Out)                                                                    \
  HWY_EXPORT(Turn##SUFFIX);                                                                                  \
  HWY_EXPORT(Copy##SUFFIX);                                                                                  \
  template <>                                                                                                \
  void turn_row(const In* in, std::int64_t in_stride, Out* out, std::int64_t out_stride, std::int64_t heads, \
                std::int64_t dim, const float* cosine, const float* sine, float direction) {                 \
    HWY_DYNAMIC_DISPATCH(Turn##SUFFIX)(in, in_stride, out, out_stride, heads, dim, cosine, sine, direction); \
  }                                                                                                          \
  template <>                                                                                                \
  void copy_row(const In* in, std::int64_t in_stride, Out* out, std::int64_t out_stride, std::int64_t heads, \
                std::int64_t dim) {                                                                          \
    HWY_DYNAMIC_DISPATCH(Copy##SUFFIX)(in, in_stride, out, out_stride, heads, dim);                          \
  }
using Half = c10::BFloat16;
TDA_ROW_KERNELS(Float, float)
TDA_ROW_KERNELS(Half, Half)
TDA_HEAD_KERNELS(FloatFloat, float, float)
TDA_HEAD_KERNELS(FloatHalf, float, Half)
TDA_HEAD_KERNELS(HalfFloat, Half, float)
TDA_HEAD_KERNELS(HalfHalf, Half, Half)

}  // namespace tda::cpu
#endif
