#include "attention/cuda/argument_checks.h"

#include <cmath>
#include <cstdint>
#include <limits>
#include <sstream>

namespace tda::cuda {
namespace {

template <class Value>
Status failure(const std::string& argument, const Value& value, const std::string& expectation) {
  std::ostringstream message;
  message << argument << " is " << value << ", expected " << expectation;
  return {message.str()};
}

Status check_shape(const AttentionShape& s) {
  constexpr std::int64_t kLongest = std::numeric_limits<std::int32_t>::max() - 1024;
  if (s.batch < 0) return failure("batch", s.batch, "0 or more");
  if (s.key_heads < 1) return failure("key_heads", s.key_heads, "1 or more");
  if (s.query_heads < 1 || s.query_heads % s.key_heads != 0) {
    return failure("query_heads", s.query_heads, "a multiple of key_heads, which is " + std::to_string(s.key_heads));
  }
  if (s.query_length < 0) return failure("query_length", s.query_length, "0 or more");
  if (s.query_length > s.key_length) {
    return failure("query_length", s.query_length, "at most key_length, which is " + std::to_string(s.key_length));
  }
  if (s.key_length > kLongest) return failure("key_length", s.key_length, "at most " + std::to_string(kLongest));
  if (s.head_dim < 1 || s.head_dim > 256) return failure("head_dim", s.head_dim, "1 to 256");
  if (s.value_dim != s.head_dim && s.value_dim != 2 * s.head_dim) {
    return failure("value_dim", s.value_dim, "head_dim or 2 head_dim, with head_dim " + std::to_string(s.head_dim));
  }
  // One block per 64 rows, head and batch element; a grid has fewer than 2^31 blocks.
  const double blocks = (static_cast<double>(s.key_length) / 64 + 1) * static_cast<double>(s.query_heads) * 2 *
                        static_cast<double>(s.batch);
  if (blocks >= 2147483648.0) return failure("batch * query_heads * key_length / 32", blocks, "less than 2^31");
  return {};
}

Status check_options(const AttentionOptions& o) {
  if (o.data_type != DataType::kFloat32 && o.data_type != DataType::kBFloat16 && o.data_type != DataType::kFloat16) {
    return failure("data_type", static_cast<int>(o.data_type), "kFloat32, kBFloat16 or kFloat16 on a CUDA device");
  }
  if (o.views != 1 && o.views != 2) return failure("views", o.views, "1 or 2");
  if (!(o.kappa > 0.0) || !std::isfinite(o.kappa)) return failure("kappa", o.kappa, "a finite number above 0");
  if (!(o.power >= 1.0) || !std::isfinite(o.power)) {
    return failure("power", o.power, "a finite number of at least 1");
  }
  return {};
}

Status check_documents(const AttentionShape& s, const PackedDocuments& d) {
  if (s.batch != 1) return failure("batch", s.batch, "1 with packed documents");
  if (d.count < 1) return failure("documents.count", d.count, "1 or more");
  if (!d.query_offsets) return failure("documents.query_offsets", "null", "count + 1 offsets on the device");
  if (!d.key_offsets) return failure("documents.key_offsets", "null", "count + 1 offsets on the device");
  if (d.longest_query < 0 || d.longest_query > s.query_length) {
    return failure("documents.longest_query", d.longest_query,
                   "0 to query_length, which is " + std::to_string(s.query_length));
  }
  if (d.longest_key < d.longest_query || d.longest_key > s.key_length) {
    return failure("documents.longest_key", d.longest_key,
                   "longest_query, which is " + std::to_string(d.longest_query) + ", to key_length, which is " +
                       std::to_string(s.key_length));
  }
  // Every document gets the blocks of the longest one.
  const double blocks = (static_cast<double>(d.longest_key) / 64 + 1) * static_cast<double>(s.query_heads) * 2 *
                        static_cast<double>(d.count);
  if (blocks >= 2147483648.0) {
    return failure("documents.count * query_heads * documents.longest_key / 32", blocks,
                   "less than 2^31: longest_query and longest_key closer to the longest documents");
  }
  return {};
}

}  // namespace

bool is_empty(const AttentionShape& s) { return s.batch == 0 || s.key_length == 0; }

Status check_call(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                  const PackedDocuments* documents) {
  if (Status s = check_shape(shape); !s.ok()) return s;
  if (Status s = check_options(options); !s.ok()) return s;
  if (documents) {
    if (Status s = check_documents(shape, *documents); !s.ok()) return s;
  }
  if (is_empty(shape)) return {};
  for (int view = 0; view < options.views; ++view) {
    static const char* const kNames[2][2] = {{"q[0]", "k[0]"}, {"q[1]", "k[1]"}};
    if (!inputs.q[view].data && shape.query_length > 0) return failure(kNames[view][0], "null", "a tensor");
    if (!inputs.k[view].data) return failure(kNames[view][1], "null", "a tensor");
  }
  if (!inputs.v.data) return failure("v", "null", "a tensor");
  if (!inputs.beta) return failure("beta", "null", "one float per query head on the device");
  if (options.views == 2 && !inputs.lambda) return failure("lambda", "null", "one float per query head on the device");
  return {};
}

Status check_outputs(const AttentionShape& shape, const ForwardOutputs& outputs) {
  if (!is_empty(shape) && shape.query_length > 0 && !outputs.output.data) return failure("output", "null", "a tensor");
  return {};
}

Status check_workspace(const void* workspace, std::size_t bytes, std::size_t needed) {
  if (needed == 0) return {};
  if (!workspace) return failure("workspace", "null", "a buffer of " + std::to_string(needed) + " bytes");
  if (bytes < needed) return failure("workspace_bytes", bytes, std::to_string(needed) + " or more");
  if (reinterpret_cast<std::uintptr_t>(workspace) % 256 != 0) {
    return failure("workspace", workspace, "an address that is a multiple of 256");
  }
  return {};
}

Status check_index(const void* index) {
  if (reinterpret_cast<std::uintptr_t>(index) % 64 == 0) return {};
  return failure("survivor_index", index, "an address that is a multiple of 64");
}

Status check_screening(const CudaAttentionOptions& choice) {
  if (choice.screening != Screening::kAutomatic && choice.screening != Screening::kAlways &&
      choice.screening != Screening::kNever) {
    return failure("screening", static_cast<int>(choice.screening), "kAutomatic, kAlways or kNever");
  }
  if (reinterpret_cast<std::uintptr_t>(choice.screening_counters) % alignof(ScreeningCounters) == 0) return {};
  return failure("screening_counters", static_cast<const void*>(choice.screening_counters),
                 "an address that is a multiple of " + std::to_string(alignof(ScreeningCounters)));
}

}  // namespace tda::cuda
