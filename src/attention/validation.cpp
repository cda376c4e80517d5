#include "attention/validation.h"

#include <cmath>
#include <cstdint>
#include <sstream>

namespace tda {
namespace {

template <typename Value>
Status failure(const std::string& argument, const Value& value, const std::string& expectation) {
  std::ostringstream message;
  message << argument << " is " << value << ", expected " << expectation;
  return {message.str()};
}

Status validate_parameter(const char* name, const void* values, const AttentionShape& shape, DataType type) {
  if (values == nullptr) return failure(name, "null", "one value per query head");
  for (std::int64_t head = 0; head < shape.query_heads; ++head) {
    const double value = type == DataType::kFloat64 ? static_cast<const double*>(values)[head]
                                                    : static_cast<double>(static_cast<const float*>(values)[head]);
    if (!std::isfinite(value)) {
      std::ostringstream argument;
      argument << name << '[' << head << ']';
      return failure(argument.str(), value, "a finite number");
    }
  }
  return {};
}

}  // namespace

bool has_no_queries(const AttentionShape& shape) {
  return shape.batch == 0 || shape.query_heads == 0 || shape.query_length == 0;
}

Status validate_shape(const AttentionShape& shape, const AttentionOptions& options) {
  if (shape.batch < 0) return failure("batch", shape.batch, "0 or more");
  if (shape.query_heads < 0) return failure("query_heads", shape.query_heads, "0 or more");
  if (shape.key_heads < 0) return failure("key_heads", shape.key_heads, "0 or more");
  if (shape.query_heads > 0 && (shape.key_heads == 0 || shape.query_heads % shape.key_heads != 0)) {
    return failure("query_heads", shape.query_heads,
                   "a multiple of key_heads, which is " + std::to_string(shape.key_heads));
  }
  if (shape.query_length < 0) return failure("query_length", shape.query_length, "0 or more");
  if (shape.query_length > shape.key_length) {
    return failure("query_length", shape.query_length,
                   "at most key_length, which is " + std::to_string(shape.key_length));
  }
  if (shape.head_dim < 1 || shape.head_dim > 256) return failure("head_dim", shape.head_dim, "1 to 256");
  if (shape.value_dim != shape.head_dim && shape.value_dim != 2 * shape.head_dim) {
    return failure("value_dim", shape.value_dim,
                   "head_dim or 2 head_dim, with head_dim " + std::to_string(shape.head_dim));
  }
  const int type = static_cast<int>(options.data_type);
  if (type < 0 || type > static_cast<int>(DataType::kFloat64)) return failure("data_type", type, "a DataType");
  if (options.views != 1 && options.views != 2) return failure("views", options.views, "1 or 2");
  if (!(options.kappa > 0.0) || !std::isfinite(options.kappa)) {
    return failure("kappa", options.kappa, "a finite number above 0");
  }
  if (!(options.power >= 1.0) || !std::isfinite(options.power)) {
    return failure("power", options.power, "a finite number of at least 1");
  }
  if (options.threads < 0) return failure("threads", options.threads, "0 (one per core) or more");
  if (options.task_runner != nullptr && options.task_runner->run == nullptr) {
    return failure("task_runner->run", "null", "a function");
  }
  return {};
}

Status validate_inputs(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs) {
  if (has_no_queries(shape)) return {};
  static const char* const kQueryNames[2] = {"q[0]", "q[1]"};
  static const char* const kKeyNames[2] = {"k[0]", "k[1]"};
  for (int view = 0; view < options.views; ++view) {
    if (inputs.q[view].data == nullptr) return failure(kQueryNames[view], "null", "a tensor");
    if (inputs.k[view].data == nullptr) return failure(kKeyNames[view], "null", "a tensor");
  }
  if (inputs.v.data == nullptr) return failure("v", "null", "a tensor");
  if (Status status = validate_parameter("beta", inputs.beta, shape, options.data_type); !status.ok()) return status;
  return options.views == 2 ? validate_parameter("lambda", inputs.lambda, shape, options.data_type) : Status{};
}

Status validate_buffer(const char* name, const void* data, std::size_t bytes, std::size_t needed,
                       std::size_t alignment) {
  if (needed == 0) return {};
  if (data == nullptr) return failure(name, "null", "a buffer of " + std::to_string(needed) + " bytes");
  if (bytes < needed)
    return failure(std::string(name).append(" size"), bytes, std::to_string(needed) + " bytes or more");
  if (reinterpret_cast<std::uintptr_t>(data) % alignment != 0) {
    return failure(name, data, "an address that is a multiple of " + std::to_string(alignment));
  }
  return {};
}

}  // namespace tda
