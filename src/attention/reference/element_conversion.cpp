#include "attention/reference/element_conversion.h"

#include <cmath>
#include <limits>

namespace tda {
namespace {

// A binary floating-point format of 16 bits: sign, exponent, mantissa.
struct HalfFormat {
  int mantissa_bits;
  int bias;
};
constexpr HalfFormat kBFloat16Format{7, 127};
constexpr HalfFormat kFloat16Format{10, 15};

double decode(HalfFormat format, std::uint16_t bits) {
  const int exponent_mask = (1 << (15 - format.mantissa_bits)) - 1;
  const int exponent = (bits >> format.mantissa_bits) & exponent_mask;
  const int mantissa = bits & ((1 << format.mantissa_bits) - 1);
  const double sign = (bits & 0x8000) ? -1.0 : 1.0;
  if (exponent == exponent_mask) {
    return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  }
  if (exponent == 0) return sign * std::ldexp(mantissa, 1 - format.bias - format.mantissa_bits);
  return sign * std::ldexp(mantissa + (1 << format.mantissa_bits), exponent - format.bias - format.mantissa_bits);
}

std::uint16_t encode(HalfFormat format, double value) {
  const int exponent_mask = (1 << (15 - format.mantissa_bits)) - 1;
  const auto sign = static_cast<std::uint16_t>(std::signbit(value) ? 0x8000 : 0);
  const auto infinity = static_cast<std::uint16_t>(exponent_mask << format.mantissa_bits);
  if (std::isnan(value)) return static_cast<std::uint16_t>(sign | infinity | (1 << (format.mantissa_bits - 1)));
  const double magnitude = std::fabs(value);
  if (std::isinf(value)) return static_cast<std::uint16_t>(sign | infinity);
  if (magnitude == 0.0) return sign;
  // Subnormal numbers share the smallest exponent, so one quantum serves both. nearbyint rounds to nearest even.
  const int exponent = std::max(std::ilogb(magnitude), 1 - format.bias);
  const double units = std::nearbyint(std::ldexp(magnitude, format.mantissa_bits - exponent));
  // A mantissa that rounds up to the next power of two carries into the exponent field by plain addition.
  const double implicit_one = std::ldexp(1.0, format.mantissa_bits);
  const std::int64_t bits = (static_cast<std::int64_t>(exponent + format.bias) << format.mantissa_bits) +
                            static_cast<std::int64_t>(units - implicit_one);
  return static_cast<std::uint16_t>(sign | (bits >= infinity ? infinity : bits));
}

}  // namespace

std::size_t element_size(DataType type) {
  switch (type) {
    case DataType::kFloat64:
      return 8;
    case DataType::kFloat32:
      return 4;
    case DataType::kBFloat16:
    case DataType::kFloat16:
      return 2;
  }
  return 0;
}

double load_element(DataType type, const void* data, std::int64_t index) {
  switch (type) {
    case DataType::kFloat64:
      return static_cast<const double*>(data)[index];
    case DataType::kFloat32:
      return static_cast<double>(static_cast<const float*>(data)[index]);
    case DataType::kBFloat16:
      return decode(kBFloat16Format, static_cast<const std::uint16_t*>(data)[index]);
    case DataType::kFloat16:
      return decode(kFloat16Format, static_cast<const std::uint16_t*>(data)[index]);
  }
  return std::numeric_limits<double>::quiet_NaN();
}

void store_element(DataType type, void* data, std::int64_t index, double value) {
  switch (type) {
    case DataType::kFloat64:
      static_cast<double*>(data)[index] = value;
      return;
    case DataType::kFloat32:
      static_cast<float*>(data)[index] = static_cast<float>(value);
      return;
    case DataType::kBFloat16:
      static_cast<std::uint16_t*>(data)[index] = encode(kBFloat16Format, value);
      return;
    case DataType::kFloat16:
      static_cast<std::uint16_t*>(data)[index] = encode(kFloat16Format, value);
      return;
  }
}

double round_to(DataType type, double value) {
  switch (type) {
    case DataType::kFloat64:
      return value;
    case DataType::kFloat32:
      return static_cast<double>(static_cast<float>(value));
    case DataType::kBFloat16:
      return decode(kBFloat16Format, encode(kBFloat16Format, value));
    case DataType::kFloat16:
      return decode(kFloat16Format, encode(kFloat16Format, value));
  }
  return value;
}

}  // namespace tda
