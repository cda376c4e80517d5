// Loading, converting, measuring and storing rows of any element type, for one instruction set at a time.
#if defined(TDA_SIMD_ROWS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TDA_SIMD_ROWS_INL_H
#undef TDA_SIMD_ROWS_INL_H
#else
#define TDA_SIMD_ROWS_INL_H
#endif

#include <cmath>
#include <cstring>
#include <limits>

#include "attention/cpu/simd_product-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tda::cpu::HWY_NAMESPACE {

// Element types as tags, because bf16 and fp16 have no arithmetic type in C++20.
struct Bf16Element {
  std::uint16_t bits;
};
struct Fp16Element {
  std::uint16_t bits;
};

HWY_INLINE VF LoadAsFloat(const float* p) { return hn::LoadU(F32(), p); }
HWY_INLINE VF LoadAsFloat(const Bf16Element* p) {
  const hn::RebindToUnsigned<F32> du;
  const hn::Rebind<std::uint16_t, F32> half;
  const auto bits = hn::LoadU(half, reinterpret_cast<const std::uint16_t*>(p));
  return hn::BitCast(F32(), hn::ShiftLeft<16>(hn::PromoteTo(du, bits)));
}
HWY_INLINE VF LoadAsFloat(const Fp16Element* p) {
  const hn::Rebind<hwy::float16_t, F32> half;
  return hn::PromoteTo(F32(), hn::LoadU(half, reinterpret_cast<const hwy::float16_t*>(p)));
}

// A partial vector, for the columns behind the last whole one. Missing elements are 0.
template <typename Element>
HWY_INLINE VF LoadPartial(const Element* p, int count) {
  Element buffer[kLanes] = {};
  std::memcpy(buffer, p, count * sizeof(Element));
  return LoadAsFloat(buffer);
}

// Round to nearest even; NaN stays NaN.
HWY_INLINE hn::Vec<hn::Rebind<std::uint16_t, F32>> RoundToBf16(VF value) {
  const hn::RebindToUnsigned<F32> du;
  const hn::RebindToSigned<F32> di;
  const hn::Rebind<std::uint16_t, F32> half;
  const auto bits = hn::BitCast(du, value);
  const auto odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(du, 1));
  auto rounded = hn::ShiftRight<16>(hn::Add(hn::Add(bits, hn::Set(du, 0x7FFF)), odd));
  rounded = hn::IfThenElse(hn::RebindMask(du, hn::IsNaN(value)), hn::Set(du, 0x7FC0), rounded);
  return hn::DemoteTo(half, hn::BitCast(di, rounded));
}

HWY_INLINE void StoreAs(VF value, float* p) { hn::StoreU(value, F32(), p); }
HWY_INLINE void StoreAs(VF value, Bf16Element* p) {
  hn::StoreU(RoundToBf16(value), hn::Rebind<std::uint16_t, F32>(), reinterpret_cast<std::uint16_t*>(p));
}
HWY_INLINE void StoreAs(VF value, Fp16Element* p) {
  const hn::Rebind<hwy::float16_t, F32> half;
  hn::StoreU(hn::DemoteTo(half, value), half, reinterpret_cast<hwy::float16_t*>(p));
}

template <typename Function>
HWY_INLINE void WithElement(DataType type, const Function& function) {
  if (type == DataType::kFloat32) {
    function(static_cast<const float*>(nullptr));
  } else if (type == DataType::kBFloat16) {
    function(static_cast<const Bf16Element*>(nullptr));
  } else {
    function(static_cast<const Fp16Element*>(nullptr));
  }
}

HWY_INLINE float Sum(VF v) { return hn::GetLane(hn::SumOfLanes(F32(), v)); }

#if HWY_TARGET == HWY_SCALAR
using F64 = hn::Rebind<double, F32>;
using VD = hn::Vec<F64>;
HWY_INLINE VD LowerAsDouble(VF v) { return hn::PromoteTo(F64(), v); }
HWY_INLINE VD UpperAsDouble(VF) { return hn::Zero(F64()); }
HWY_INLINE VF JoinAsFloat(VD, VD lower) { return hn::DemoteTo(F32(), lower); }
#else
using F64 = hn::Repartition<double, F32>;
using VD = hn::Vec<F64>;
HWY_INLINE VD LowerAsDouble(VF v) { return hn::PromoteTo(F64(), hn::LowerHalf(v)); }
HWY_INLINE VD UpperAsDouble(VF v) { return hn::PromoteTo(F64(), hn::UpperHalf(hn::Half<F32>(), v)); }
HWY_INLINE VF JoinAsFloat(VD upper, VD lower) {
  const hn::Half<F32> half;
  return hn::Combine(F32(), hn::DemoteTo(half, upper), hn::DemoteTo(half, lower));
}
#endif

// In double the squares neither overflow nor underflow, and a row times a power of two gets exactly the inverse
// norm divided by it.
template <typename Element>
HWY_INLINE double SquareSum(const Element* row, int dim) {
  VD sum0 = hn::Zero(F64()), sum1 = sum0;
  for (int c = 0; c < dim; c += kLanes) {
    const VF x = c + kLanes <= dim ? LoadAsFloat(row + c) : LoadPartial(row + c, dim - c);
    const VD lower = LowerAsDouble(x), upper = UpperAsDouble(x);
    sum0 = hn::MulAdd(lower, lower, sum0);
    sum1 = hn::MulAdd(upper, upper, sum1);
  }
  return hn::GetLane(hn::SumOfLanes(F64(), hn::Add(sum0, sum1)));
}

// Squares of bf16 are exact in fp32, so that fp32 sums do unless they leave its range.
HWY_INLINE double SquareSum(const Bf16Element* row, int dim) {
  VF sum0 = hn::Zero(F32()), sum1 = sum0;
  int c = 0;
  for (; c + 2 * kLanes <= dim; c += 2 * kLanes) {
    const VF x0 = LoadAsFloat(row + c), x1 = LoadAsFloat(row + c + kLanes);
    sum0 = hn::MulAdd(x0, x0, sum0);
    sum1 = hn::MulAdd(x1, x1, sum1);
  }
  for (; c < dim; c += kLanes) {
    const VF x = c + kLanes <= dim ? LoadAsFloat(row + c) : LoadPartial(row + c, dim - c);
    sum0 = hn::MulAdd(x, x, sum0);
  }
  const float sum = Sum(hn::Add(sum0, sum1));
  if (sum > 0x1p-60f && sum < 0x1p100f) return static_cast<double>(sum);
  return SquareSum<Bf16Element>(row, dim);
}

template <typename Element>
void InverseNormsOf(const Element* row, std::ptrdiff_t stride, int count, int dim, bool normalize, float* inverse,
                    float* low) {
  const F64 wide;
  const hn::Rebind<float, F64> narrow;
  constexpr int kBatch = 64, kStep = static_cast<int>(hn::MaxLanes(F64()));
  double sums[kBatch] = {};
  float high[kBatch], rest[kBatch];
  for (int first = 0; first < count; first += kBatch) {
    const int rows = count - first < kBatch ? count - first : kBatch;
    for (int r = 0; r < rows; ++r, row += stride) sums[r] = SquareSum(row, dim);
    // Root and quotient of many rows at a time.
    for (int r = 0; r < rows; r += kStep) {
      const VD sum = hn::LoadU(wide, sums + r);
      VD exact = hn::Set(wide, 1.0);
      if (normalize) exact = hn::Div(exact, hn::Max(hn::Sqrt(sum), hn::Set(wide, 1e-12)));
      exact = hn::IfThenElse(hn::IsFinite(sum), exact, hn::Set(wide, std::numeric_limits<double>::quiet_NaN()));
      const auto rounded = hn::DemoteTo(narrow, exact);
      hn::StoreU(rounded, narrow, high + r);
      hn::StoreU(hn::DemoteTo(narrow, hn::Sub(exact, hn::PromoteTo(wide, rounded))), narrow, rest + r);
    }
    std::memcpy(inverse + first, high, rows * sizeof(float));
    if (low != nullptr) std::memcpy(low + first, rest, rows * sizeof(float));
  }
}

void InverseNorms(Rows rows, int count, int dim, bool normalize, float* inverse, float* low) {
  WithElement(rows.type, [&](auto* tag) {
    InverseNormsOf(static_cast<decltype(tag)>(rows.data), rows.stride, count, dim, normalize, inverse, low);
  });
}

template <typename Element>
void LoadRowsOf(const Element* row, std::ptrdiff_t stride, int count, int dim, const float* scale, float* to,
                std::ptrdiff_t to_stride) {
  const F32 d;
  for (int r = 0; r < count; ++r, row += stride, to += to_stride) {
    const float factor = scale == nullptr ? 1.0f : scale[r];
    if (factor == 0.0f) {  // also for NaN rows, which count as zero here
      std::memset(to, 0, to_stride * sizeof(float));
      continue;
    }
    const VF f = hn::Set(d, factor);
    int c = 0;
    for (; c + kLanes <= dim; c += kLanes) hn::StoreU(hn::Mul(LoadAsFloat(row + c), f), d, to + c);
    for (; c < dim; ++c) to[c] = factor * hn::GetLane(LoadPartial(row + c, 1));
    for (; c < to_stride; ++c) to[c] = 0.0f;
  }
}

void LoadRows(Rows rows, int count, int dim, const float* scale, float* to, std::ptrdiff_t to_stride) {
  WithElement(rows.type, [&](auto* tag) {
    LoadRowsOf(static_cast<decltype(tag)>(rows.data), rows.stride, count, dim, scale, to, to_stride);
  });
}

template <typename Element>
void UnitRowsOf(const Element* row, std::ptrdiff_t stride, int count, int dim, const float* inverse, const float* low,
                float* to, std::ptrdiff_t to_stride) {
  const F32 d;
  for (int r = 0; r < count; ++r, row += stride, to += to_stride) {
    if (std::isnan(inverse[r])) {
      std::memset(to, 0, to_stride * sizeof(float));
      continue;
    }
    const VF high = hn::Set(d, inverse[r]), rest = hn::Set(d, low[r]);
    int c = 0;
    for (; c + kLanes <= dim; c += kLanes) {
      const VF x = LoadAsFloat(row + c);
      hn::StoreU(hn::MulAdd(x, high, hn::Mul(x, rest)), d, to + c);
    }
    if (c < dim) {
      const VF x = LoadPartial(row + c, dim - c);
      float buffer[kLanes];
      hn::StoreU(hn::MulAdd(x, high, hn::Mul(x, rest)), d, buffer);
      std::memcpy(to + c, buffer, (dim - c) * sizeof(float));
    }
    for (c = dim; c < to_stride; ++c) to[c] = 0.0f;
  }
}

void UnitRows(Rows rows, int count, int dim, const float* inverse, const float* low, float* to,
              std::ptrdiff_t to_stride) {
  WithElement(rows.type, [&](auto* tag) {
    UnitRowsOf(static_cast<decltype(tag)>(rows.data), rows.stride, count, dim, inverse, low, to, to_stride);
  });
}

template <typename Element>
void StoreRowsOf(const float* rows, std::ptrdiff_t row_stride, int count, int dim, Element* to,
                 std::ptrdiff_t to_stride) {
  for (int r = 0; r < count; ++r, rows += row_stride, to += to_stride) {
    int c = 0;
    for (; c + kLanes <= dim; c += kLanes) StoreAs(hn::LoadU(F32(), rows + c), to + c);
    if (c < dim) {
      Element buffer[kLanes];
      StoreAs(LoadPartial(rows + c, dim - c), buffer);
      std::memcpy(to + c, buffer, (dim - c) * sizeof(Element));
    }
  }
}

void StoreRows(const float* rows, std::ptrdiff_t row_stride, int count, int dim, DataType type, void* to,
               std::ptrdiff_t to_stride) {
  WithElement(type, [&](auto* tag) {
    using Element = std::remove_const_t<std::remove_pointer_t<decltype(tag)>>;
    StoreRowsOf(rows, row_stride, count, dim, static_cast<Element*>(to), to_stride);
  });
}

template <typename Element>
void RoundRowsOf(const Element* row, std::ptrdiff_t stride, int count, int dim, const float* scale, std::uint16_t* to,
                 std::ptrdiff_t to_stride) {
  const F32 d;
  const hn::Rebind<std::uint16_t, F32> half;
  for (int r = 0; r < count; ++r, row += stride, to += to_stride) {
    const float factor = scale == nullptr ? 1.0f : scale[r];
    if (!(factor != 0.0f) || std::isnan(factor)) {
      std::memset(to, 0, to_stride * sizeof(std::uint16_t));
      continue;
    }
    const VF f = hn::Set(d, factor);
    int c = 0;
    for (; c < dim; c += kLanes) {
      const bool whole = c + kLanes <= dim;
      const VF value = hn::Mul(whole ? LoadAsFloat(row + c) : LoadPartial(row + c, dim - c), f);
      const auto rounded = RoundToBf16(value);
      if (whole) {
        hn::StoreU(rounded, half, to + c);
      } else {
        std::uint16_t buffer[kLanes];
        hn::StoreU(rounded, half, buffer);
        std::memcpy(to + c, buffer, (dim - c) * sizeof(std::uint16_t));
      }
    }
    if (to_stride > dim) std::memset(to + dim, 0, (to_stride - dim) * sizeof(std::uint16_t));
  }
}

void RoundRows(Rows rows, int count, int dim, const float* scale, std::uint16_t* to, std::ptrdiff_t to_stride) {
  WithElement(rows.type, [&](auto* tag) {
    RoundRowsOf(static_cast<decltype(tag)>(rows.data), rows.stride, count, dim, scale, to, to_stride);
  });
}

template <typename Element>
bool AllFiniteOf(const Element* row, std::ptrdiff_t stride, int count, int dim) {
  const F32 d;
  for (int r = 0; r < count; ++r, row += stride) {
    VF sum = hn::Zero(d);  // x * 0 is NaN for NaN and Inf, else 0
    for (int c = 0; c < dim; c += kLanes) {
      const VF x = c + kLanes <= dim ? LoadAsFloat(row + c) : LoadPartial(row + c, dim - c);
      sum = hn::MulAdd(x, hn::Zero(d), sum);
    }
    if (!(Sum(sum) == 0.0f)) return false;
  }
  return true;
}

bool AllFinite(Rows rows, int count, int dim) {
  bool finite = true;
  WithElement(rows.type,
              [&](auto* tag) { finite = AllFiniteOf(static_cast<decltype(tag)>(rows.data), rows.stride, count, dim); });
  return finite;
}

// In double: the component along x, which is taken out, may be much larger than what remains.
template <typename Element>
void NormalizeBackwardOf(float* gradient, std::ptrdiff_t gradient_stride, const Element* x, std::ptrdiff_t x_stride,
                         int count, int dim, const float* inverse, const float* low) {
  const F32 d;
  // 1e12 is the clamped inverse; a row that lies exactly on the floor is treated as below it.
  constexpr float kFloorInverse = 1e12f;
  for (int r = 0; r < count; ++r, gradient += gradient_stride, x += x_stride) {
    const double scale = static_cast<double>(inverse[r]) + static_cast<double>(low[r]);
    const auto load = [&](int c) { return c + kLanes <= dim ? LoadAsFloat(x + c) : LoadPartial(x + c, dim - c); };
    VD along = hn::Zero(F64());  // <x, gradient>
    for (int c = 0; inverse[r] < kFloorInverse && c < dim; c += kLanes) {
      const VF value = load(c), g = hn::LoadU(d, gradient + c);
      along = hn::MulAdd(LowerAsDouble(value), LowerAsDouble(g), along);
      along = hn::MulAdd(UpperAsDouble(value), UpperAsDouble(g), along);
    }
    const VD factor = hn::Set(F64(), scale);
    const VD projection = hn::Mul(hn::SumOfLanes(F64(), along), hn::Set(F64(), scale * scale));
    for (int c = 0; c < dim; c += kLanes) {
      const VF value = load(c), g = hn::LoadU(d, gradient + c);
      const VD lower = hn::Mul(hn::NegMulAdd(projection, LowerAsDouble(value), LowerAsDouble(g)), factor);
      const VD upper = hn::Mul(hn::NegMulAdd(projection, UpperAsDouble(value), UpperAsDouble(g)), factor);
      hn::StoreU(JoinAsFloat(upper, lower), d, gradient + c);
    }
  }
}

void NormalizeBackward(float* gradient, std::ptrdiff_t gradient_stride, Rows x, int count, int dim,
                       const float* inverse, const float* low) {
  WithElement(x.type, [&](auto* tag) {
    NormalizeBackwardOf(gradient, gradient_stride, static_cast<decltype(tag)>(x.data), x.stride, count, dim, inverse,
                        low);
  });
}

}  // namespace tda::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // TDA_SIMD_ROWS_INL_H
