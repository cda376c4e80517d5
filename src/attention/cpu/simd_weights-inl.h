// From scores to weights, and work survivor by survivor, for one instruction set at a time.
#if defined(TDA_SIMD_WEIGHTS_INL_H) == defined(HWY_TARGET_TOGGLE)
#ifdef TDA_SIMD_WEIGHTS_INL_H
#undef TDA_SIMD_WEIGHTS_INL_H
#else
#define TDA_SIMD_WEIGHTS_INL_H
#endif

#include <bit>

#include "attention/cpu/simd_rows-inl.h"
#include "hwy/contrib/math/math-inl.h"

HWY_BEFORE_NAMESPACE();
namespace tda::cpu::HWY_NAMESPACE {

using MF = hn::Mask<F32>;

HWY_INLINE std::uint64_t BitsOf(MF mask) {
#if HWY_TARGET == HWY_AVX3
  return mask.raw;
#else
  std::uint8_t bytes[8] = {};
  hn::StoreMaskBits(F32(), mask, bytes);
  std::uint64_t bits;
  std::memcpy(&bits, bytes, 8);
  return bits & ((std::uint64_t{1} << kLanes) - 1);
#endif
}

HWY_INLINE MF MaskOf(std::uint64_t bits) {
  return hn::LoadMaskBits(F32(), reinterpret_cast<const std::uint8_t*>(&bits));
}

// a = r^power and da/dr for r > 0 and NaN; other lanes are undefined.
template <PowerRule::Kind kKind>
HWY_INLINE void Power(VF r, VF power, VF& weight, VF& derivative) {
  const F32 d;
  if constexpr (kKind == PowerRule::kOne) {
    weight = r;
    derivative = hn::IfThenElse(hn::IsNaN(r), r, hn::Set(d, 1.0f));
  } else if constexpr (kKind == PowerRule::kTwo) {
    weight = hn::Mul(r, r);
    derivative = hn::Add(r, r);
  } else if constexpr (kKind == PowerRule::kThree) {
    const VF square = hn::Mul(r, r);
    // With the rounding error of the square, so that the cube is rounded once.
    weight = hn::MulAdd(square, r, hn::Mul(hn::MulSub(r, r, square), r));
    derivative = hn::Mul(hn::Set(d, 3.0f), square);
  } else if constexpr (kKind == PowerRule::kThreeHalves) {
    const VF root = hn::Sqrt(r);
    weight = hn::Mul(r, root);
    derivative = hn::Mul(hn::Set(d, 1.5f), root);
  } else {
    // In double, because the error of the logarithm is multiplied by the power.
    const F64 wide;
    const VD p = LowerAsDouble(power);
    const VD lower = hn::Exp(wide, hn::Mul(p, hn::Log(wide, LowerAsDouble(r))));
    const VD upper = hn::Exp(wide, hn::Mul(p, hn::Log(wide, UpperAsDouble(r))));
    weight = hn::IfThenElse(hn::IsNaN(r), r, JoinAsFloat(upper, lower));
    derivative = hn::Div(hn::Mul(power, weight), r);
  }
}

template <PowerRule::Kind kKind, bool kByRow, bool kDerivative>
int WeighAs(const WeighArguments& in, float* scores, float* derivative, std::uint64_t* masks) {
  const F32 d;
  const VF power = hn::Set(d, in.power.power);
  int survivors = 0;
  for (int index = 0; index < in.row_count; ++index) {
    const int row = in.rows[index];
    const VF row_scale = hn::Set(d, in.row_scale[row]);
    const VF row_tau = kByRow ? hn::Set(d, in.row_tau.high[row]) : hn::Zero(d);
    const VF row_tau_low = kByRow ? hn::Set(d, in.row_tau.low[row]) : hn::Zero(d);
    std::uint64_t row_bits = 0;
#pragma GCC unroll 4
    for (int lane = 0; lane < kBlock; lane += kLanes) {
      if ((in.groups >> (lane / kSlice) & 1) == 0) continue;
      float* at = scores + row * kBlock + lane;
      const VF s = hn::Mul(hn::LoadU(d, at), hn::Mul(row_scale, hn::LoadU(d, in.lane_scale + lane)));
      const VF tau = kByRow ? row_tau : hn::LoadU(d, in.lane_tau.high + lane);
      const VF tau_low = kByRow ? row_tau_low : hn::LoadU(d, in.lane_tau.low + lane);
      const VF r = hn::Sub(hn::Sub(s, tau), tau_low);
      // A NaN score, that is a NaN or Inf in q or k, counts as a survivor and so reaches everything it touches.
      MF live = hn::Not(hn::Le(r, hn::Zero(d)));
      if (in.allowed != nullptr) live = hn::And(live, MaskOf(in.allowed[row] >> lane));
      const std::uint64_t bits = BitsOf(live);
      row_bits |= bits << lane;
      // A branch would be mispredicted too often to pay, unless the power is expensive.
      VF weight = hn::Zero(d), slope = weight;
      if (kKind != PowerRule::kGeneral || bits != 0) Power<kKind>(r, power, weight, slope);
      hn::StoreU(hn::IfThenElseZero(live, weight), d, at);
      if (kDerivative) hn::StoreU(hn::IfThenElseZero(live, slope), d, derivative + row * kBlock + lane);
    }
    masks[row] |= row_bits;
    survivors += std::popcount(row_bits);
  }
  return survivors;
}

template <PowerRule::Kind kKind>
int WeighAs(const WeighArguments& in, float* scores, float* derivative, std::uint64_t* masks) {
  const bool by_row = in.row_tau.high != nullptr;
  if (derivative == nullptr) {
    return by_row ? WeighAs<kKind, true, false>(in, scores, derivative, masks)
                  : WeighAs<kKind, false, false>(in, scores, derivative, masks);
  }
  return by_row ? WeighAs<kKind, true, true>(in, scores, derivative, masks)
                : WeighAs<kKind, false, true>(in, scores, derivative, masks);
}

int Weigh(const WeighArguments& in, float* scores, float* derivative, std::uint64_t* masks) {
  switch (in.power.kind) {
    case PowerRule::kOne:
      return WeighAs<PowerRule::kOne>(in, scores, derivative, masks);
    case PowerRule::kTwo:
      return WeighAs<PowerRule::kTwo>(in, scores, derivative, masks);
    case PowerRule::kThree:
      return WeighAs<PowerRule::kThree>(in, scores, derivative, masks);
    case PowerRule::kThreeHalves:
      return WeighAs<PowerRule::kThreeHalves>(in, scores, derivative, masks);
    case PowerRule::kGeneral:
      break;
  }
  return WeighAs<PowerRule::kGeneral>(in, scores, derivative, masks);
}

int ExceedingRows(const float* scores, const float* lane_bound, std::uint8_t* rows_out) {
  const F32 d;
  int count = 0;
  for (int row = 0; row < kSlice; ++row) {
    bool any = false;
    for (int v = 0; v < kGroupVectors; ++v) {
      const VF s = hn::LoadU(d, scores + row * kBlock + v * kLanes);
      any |= !hn::AllFalse(d, hn::Gt(s, hn::LoadU(d, lane_bound + v * kLanes)));
    }
    rows_out[count] = static_cast<std::uint8_t>(row);
    count += any ? 1 : 0;
  }
  return count;
}

void SelectSurvivors(const std::uint64_t* masks, int row_count, const float* weights, float factor, float* to,
                     bool accumulate) {
  const F32 d;
  const VF f = hn::Set(d, factor);
  for (int row = 0; row < row_count; ++row) {
    for (int lane = 0; lane < kBlock; lane += kLanes) {
      const int at = row * kBlock + lane;
      VF value = hn::IfThenElseZero(MaskOf(masks[row] >> lane), hn::Mul(f, hn::LoadU(d, weights + at)));
      if (accumulate) value = hn::Add(value, hn::LoadU(d, to + at));
      hn::StoreU(value, d, to + at);
    }
  }
}

// kVectors vectors of a value row stay in registers while the lanes of its mask are visited.
template <int kVectors, typename Element>
HWY_INLINE void AddToLanes(std::uint64_t mask, const float* weights, float factor, const Element* value,
                           float* accumulator, std::ptrdiff_t stride) {
  const F32 d;
  VF x[kVectors];
  for (int v = 0; v < kVectors; ++v) x[v] = LoadAsFloat(value + v * kLanes);
  for (; mask != 0; mask &= mask - 1) {
    const int lane = std::countr_zero(mask);
    const VF w = hn::Set(d, factor * weights[lane]);
    float* to = accumulator + lane * stride;
    for (int v = 0; v < kVectors; ++v) {
      hn::StoreU(hn::MulAdd(w, x[v], hn::LoadU(d, to + v * kLanes)), d, to + v * kLanes);
    }
  }
}

template <typename Element>
HWY_INLINE void AddRowToLanes(std::uint64_t mask, const float* weights, float factor, const Element* value, int dim,
                              float* accumulator, std::ptrdiff_t stride) {
  int c = 0;
  for (; c + 4 * kLanes <= dim; c += 4 * kLanes) {
    AddToLanes<4>(mask, weights, factor, value + c, accumulator + c, stride);
  }
  for (; c < dim; c += kLanes) AddToLanes<1>(mask, weights, factor, value + c, accumulator + c, stride);
}

void AccumulateSurvivors(const std::uint64_t* masks, int row_count, const float* weights, float factor, Rows values,
                         int value_dim, float* accumulator, std::ptrdiff_t accumulator_stride) {
  WithElement(values.type, [&](auto* tag) {
    const auto* value = static_cast<decltype(tag)>(values.data);
    for (int row = 0; row < row_count; ++row) {
      if (masks[row] == 0) continue;
      AddRowToLanes(masks[row], weights + row * kBlock, factor, value + row * values.stride, value_dim, accumulator,
                    accumulator_stride);
    }
  });
}

void CountLanes(const std::uint64_t* masks_a, const std::uint64_t* masks_b, int row_count, std::int32_t* counts) {
  for (int row = 0; row < row_count; ++row) {
    for (std::uint64_t bits = masks_a[row] | masks_b[row]; bits != 0; bits &= bits - 1)
      ++counts[std::countr_zero(bits)];
  }
}

template <typename Element>
HWY_INLINE float Dot(const Element* a, const Element* b, int dim) {
  const F32 d;
  VF sum0 = hn::Zero(d), sum1 = sum0;
  int c = 0;
  for (; c + 2 * kLanes <= dim; c += 2 * kLanes) {
    sum0 = hn::MulAdd(LoadAsFloat(a + c), LoadAsFloat(b + c), sum0);
    sum1 = hn::MulAdd(LoadAsFloat(a + c + kLanes), LoadAsFloat(b + c + kLanes), sum1);
  }
  for (; c < dim; c += kLanes) sum0 = hn::MulAdd(LoadAsFloat(a + c), LoadAsFloat(b + c), sum0);
  return Sum(hn::Add(sum0, sum1));
}

// row += sum over the lanes of the mask of coefficients[lane] * vectors[lane]; the sum stays in registers.
template <int kVectors, typename Element>
HWY_INLINE void AddLanesToRow(std::uint64_t mask, const float* coefficients, const Element* vectors,
                              std::ptrdiff_t stride, float* row) {
  const F32 d;
  VF sum[kVectors];
  for (int v = 0; v < kVectors; ++v) sum[v] = hn::Zero(d);
  for (; mask != 0; mask &= mask - 1) {
    const int lane = std::countr_zero(mask);
    const VF c = hn::Set(d, coefficients[lane]);
    for (int v = 0; v < kVectors; ++v) {
      sum[v] = hn::MulAdd(c, LoadAsFloat(vectors + lane * stride + v * kLanes), sum[v]);
    }
  }
  for (int v = 0; v < kVectors; ++v) hn::StoreU(hn::Add(hn::LoadU(d, row + v * kLanes), sum[v]), d, row + v * kLanes);
}

template <typename Element>
void SurvivorGradientsOf(const SurvivorGradientArguments& in) {
  const auto* queries = static_cast<const Element*>(in.queries.data);
  const auto* keys = static_cast<const Element*>(in.keys.data);
  const auto* values = static_cast<const Element*>(in.values.data);
  const auto* cotangents = static_cast<const Element*>(in.cotangents.data);
  float by_query[kBlock], by_key[kBlock];
  double total_g = 0.0, total_ap = 0.0;
  for (int row = 0; row < in.row_count; ++row) {
    const std::uint64_t mask = in.masks[row];
    if (mask == 0) continue;
    const Element* cotangent = cotangents + row * in.cotangents.stride;
    const float* weight = in.weight + row * kBlock;
    float sum_g = 0.0f;
    for (std::uint64_t bits = mask; bits != 0; bits &= bits - 1) {
      const int lane = std::countr_zero(bits);
      const float product = Dot(cotangent, values + lane * in.values.stride, in.value_dim);
      const float g = in.factor * in.derivative[row * kBlock + lane] * product;
      by_key[lane] = g * in.lane_scale[lane];
      by_query[lane] = g * in.row_scale[row];
      sum_g += g;
      total_ap += static_cast<double>(weight[lane] * product);
    }
    total_g += static_cast<double>(in.threshold_scale[row]) * static_cast<double>(sum_g);
    if (in.query_gradient != nullptr) {
      float* gradient = in.query_gradient + row * in.head_dim;
      int c = 0;
      for (; c + 4 * kLanes <= in.head_dim; c += 4 * kLanes) {
        AddLanesToRow<4>(mask, by_key, keys + c, in.keys.stride, gradient + c);
      }
      for (; c < in.head_dim; c += kLanes) AddLanesToRow<1>(mask, by_key, keys + c, in.keys.stride, gradient + c);
    }
    if (in.key_gradient != nullptr) {
      AddRowToLanes(mask, by_query, 1.0f, queries + row * in.queries.stride, in.head_dim, in.key_gradient, in.head_dim);
    }
    if (in.value_gradient != nullptr) {
      AddRowToLanes(mask, weight, in.factor, cotangent, in.value_dim, in.value_gradient, in.value_dim);
    }
  }
  *in.g += total_g;
  if (in.ap != nullptr) *in.ap += total_ap;
}

void SurvivorGradients(const SurvivorGradientArguments& in) {
  WithElement(in.values.type,
              [&](auto* tag) { SurvivorGradientsOf<std::remove_const_t<std::remove_pointer_t<decltype(tag)>>>(in); });
}

void CombineGradients(const CombineArguments& in, float* derivative, float* scaled_by_lanes) {
  const F32 d;
  const VF f = hn::Set(d, in.factor);
  double total_g = 0.0, total_ap = 0.0;
  for (int lane = 0; lane < kBlock; lane += kLanes) {
    const VF lane_scale = hn::LoadU(d, in.lane_scale + lane);
    VF sum_g = hn::Zero(d), sum_ap = sum_g;
    for (int row = 0; row < in.row_count; ++row) {
      const int at = row * kBlock + lane;
      const VF slope = hn::LoadU(d, derivative + at);
      const MF live = hn::Not(hn::Eq(slope, hn::Zero(d)));
      const VF product = hn::IfThenElseZero(live, hn::LoadU(d, in.products + at));
      const VF g = hn::Mul(hn::Mul(f, slope), product);
      sum_g = hn::MulAdd(hn::Set(d, in.threshold_scale[row]), g, sum_g);
      if (in.ap != nullptr) sum_ap = hn::MulAdd(hn::LoadU(d, in.weight + at), product, sum_ap);
      hn::StoreU(hn::IfThenElseZero(live, hn::Mul(g, hn::Set(d, in.row_scale[row]))), d, derivative + at);
      if (scaled_by_lanes != nullptr) {
        hn::StoreU(hn::IfThenElseZero(live, hn::Mul(g, lane_scale)), d, scaled_by_lanes + at);
      }
    }
    total_g += static_cast<double>(Sum(sum_g));
    total_ap += static_cast<double>(Sum(sum_ap));
  }
  *in.g += total_g;
  if (in.ap != nullptr) *in.ap += total_ap;
}

}  // namespace tda::cpu::HWY_NAMESPACE
HWY_AFTER_NAMESPACE();
#endif  // TDA_SIMD_WEIGHTS_INL_H
