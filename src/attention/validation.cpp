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

std::string element(const char* name, std::int64_t index) {
  return std::string(name) + '[' + std::to_string(index) + ']';
}

// count + 1 offsets from 0 to `total` that never decrease, no two further apart than `longest`.
Status validate_offsets(const char* name, const std::int32_t* offsets, std::int64_t count, const char* total_name,
                        std::int64_t total, const char* longest_name, std::int64_t longest) {
  if (offsets == nullptr) return failure(name, "null", std::to_string(count + 1) + " offsets");
  if (offsets[0] != 0) return failure(element(name, 0), offsets[0], "0");
  for (std::int64_t d = 0; d < count; ++d) {
    const std::int64_t before = offsets[d], after = offsets[d + 1];
    if (after < before) return failure(element(name, d + 1), after, std::to_string(before) + " or more");
    if (after - before > longest) {
      return failure(
          element(name, d + 1), after,
          std::to_string(before) + " plus at most " + longest_name + ", which is " + std::to_string(longest));
    }
  }
  if (offsets[count] != total) {
    return failure(element(name, count), offsets[count],
                   std::string(total_name) + ", which is " + std::to_string(total));
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

Status validate_document_bounds(const AttentionShape& shape, const PackedDocuments& d) {
  if (shape.batch != 1) return failure("batch", shape.batch, "1 with packed documents");
  if (d.count < 1) return failure("documents.count", d.count, "1 or more");
  if (d.longest_query < 0 || d.longest_query > shape.query_length) {
    return failure("documents.longest_query", d.longest_query,
                   "0 to query_length, which is " + std::to_string(shape.query_length));
  }
  if (d.longest_key < d.longest_query || d.longest_key > shape.key_length) {
    return failure("documents.longest_key", d.longest_key,
                   "longest_query, which is " + std::to_string(d.longest_query) + ", to key_length, which is " +
                       std::to_string(shape.key_length));
  }
  // On a GPU nobody would read the offsets and notice.
  if (d.longest_key == 0 && shape.key_length > 0) {
    return failure(
        "documents.longest_key", d.longest_key,
        "1 or more, as there are keys; key_length, which is " + std::to_string(shape.key_length) + ", always serves");
  }
  return {};
}

Status validate_document_offsets(const AttentionShape& shape, const PackedDocuments& documents) {
  const std::int32_t *query = documents.query_offsets, *key = documents.key_offsets;
  if (Status status = validate_offsets("documents.query_offsets", query, documents.count, "query_length",
                                       shape.query_length, "longest_query", documents.longest_query);
      !status.ok()) {
    return status;
  }
  if (Status status = validate_offsets("documents.key_offsets", key, documents.count, "key_length", shape.key_length,
                                       "longest_key", documents.longest_key);
      !status.ok()) {
    return status;
  }
  for (std::int64_t d = 0; d < documents.count; ++d) {
    const std::int64_t queries = query[d + 1] - query[d], keys = key[d + 1] - key[d];
    if (queries > keys) {
      return failure("documents.query_offsets",
                     std::to_string(queries) + " queries long in document " + std::to_string(d),
                     "at most its keys, which are " + std::to_string(keys));
    }
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
