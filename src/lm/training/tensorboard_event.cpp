#include "lm/training/tensorboard_event.h"

#include <bit>
#include <concepts>

#include "lm/training/crc32c.h"

namespace tda {
namespace {

// Field numbers of tensorflow/core/util/event.proto and framework/summary.proto.
namespace event_field {
constexpr std::uint32_t kWallTime = 1, kStep = 2, kFileVersion = 3, kSummary = 5, kSessionLog = 7;
}
namespace session_log_field {
constexpr std::uint32_t kStatus = 1;
constexpr std::uint64_t kStart = 1;
}  // namespace session_log_field
namespace summary_field {
constexpr std::uint32_t kValue = 1;
}
namespace value_field {
constexpr std::uint32_t kTag = 1, kSimpleValue = 2;
}

enum class WireType : std::uint32_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

template <std::unsigned_integral T>
std::string little_endian(T value) {
  std::string bytes;
  for (std::size_t i = 0; i < sizeof(T); ++i) bytes += static_cast<char>(value >> (8 * i) & 0xFF);
  return bytes;
}

std::string varint(std::uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>((value & 0x7F) | 0x80);
  return bytes += static_cast<char>(value);
}

std::string key(std::uint32_t field, WireType type) { return varint(field << 3 | static_cast<std::uint32_t>(type)); }

std::string varint_field(std::uint32_t field, std::uint64_t value) {
  return key(field, WireType::kVarint) + varint(value);
}

std::string bytes_field(std::uint32_t field, std::string_view bytes) {
  return key(field, WireType::kBytes) + varint(bytes.size()) + std::string(bytes);
}

std::string double_field(std::uint32_t field, double value) {
  return key(field, WireType::kFixed64) + little_endian(std::bit_cast<std::uint64_t>(value));
}

std::string float_field(std::uint32_t field, float value) {
  return key(field, WireType::kFixed32) + little_endian(std::bit_cast<std::uint32_t>(value));
}

std::string event_head(double wall_time, std::int64_t step) {
  return double_field(event_field::kWallTime, wall_time) +
         varint_field(event_field::kStep, static_cast<std::uint64_t>(step));
}

// Without it, a checksum over data that holds its own checksum would be a constant.
std::uint32_t masked(std::uint32_t crc) { return std::rotr(crc, 15) + 0xA282EAD8; }

}  // namespace

std::string file_version_event(double wall_time) {
  return double_field(event_field::kWallTime, wall_time) + bytes_field(event_field::kFileVersion, "brain.Event:2");
}

std::string session_start_event(double wall_time, std::int64_t step) {
  const std::string log = varint_field(session_log_field::kStatus, session_log_field::kStart);
  return event_head(wall_time, step) + bytes_field(event_field::kSessionLog, log);
}

std::string scalars_event(double wall_time, std::int64_t step, const std::vector<Scalar>& scalars) {
  std::string summary;
  for (const Scalar& scalar : scalars) {
    summary += bytes_field(summary_field::kValue,
                           bytes_field(value_field::kTag, scalar.tag) +
                               float_field(value_field::kSimpleValue, static_cast<float>(scalar.value)));
  }
  return event_head(wall_time, step) + bytes_field(event_field::kSummary, summary);
}

std::string tfrecord(std::string_view event) {
  const std::string length = little_endian(static_cast<std::uint64_t>(event.size()));
  return length + little_endian(masked(crc32c(length))) + std::string(event) + little_endian(masked(crc32c(event)));
}

}  // namespace tda
