// Records of a TensorBoard event file, encoded by hand: the few protobuf fields of tensorflow.Event that scalars need,
// in the framing of TFRecord. A generator and a runtime of protobuf would be a large dependency for five fields.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace tda {

struct Scalar {
  std::string tag;
  double value = 0.0;  // stored as fp32, which is what the format has
};

// Each returns one Event message. `wall_time`: seconds since 1970.
//   the first of a file: Event.file_version = "brain.Event:2"
std::string file_version_event(double wall_time);
//   a start of the run: a reader forgets what earlier files say about `step` and later ones
std::string session_start_event(double wall_time, std::int64_t step);
//   Event.summary with one Value{tag, simple_value} for each scalar
std::string scalars_event(double wall_time, std::int64_t step, const std::vector<Scalar>& scalars);

// `event` as a TFRecord: length (uint64), masked CRC-32C of the length, the bytes, masked CRC-32C of the bytes; all
// little-endian.
std::string tfrecord(std::string_view event);

}  // namespace tda
