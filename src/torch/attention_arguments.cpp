#include "torch/attention_arguments.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/isfinite.h>

#include <algorithm>
#include <cmath>

#include "tda/attention_cuda.h"

namespace tda {
namespace {

constexpr std::int64_t kLargestHeadDim = 256;

void check_tensor(const char* name, const at::Tensor& x, const at::Tensor& q) {
  TORCH_CHECK_VALUE(x.dim() == 4, name, ": expected 4 dimensions (batch, heads, length, dim), got shape ",
                    x.sym_sizes());
  TORCH_CHECK_VALUE(x.scalar_type() == q.scalar_type(), name, ": expected the dtype of q, ", q.scalar_type(), ", got ",
                    x.scalar_type());
  TORCH_CHECK_VALUE(x.device() == q.device(), name, ": expected the device of q, ", q.device(), ", got ", x.device());
}

void check_dtype(const at::Tensor& q) {
  const auto type = q.scalar_type();
  const bool single = type == at::kFloat || type == at::kBFloat16 || type == at::kHalf;
  TORCH_CHECK_VALUE(single || (type == at::kDouble && !q.is_cuda()),
                    "q: expected float32, bfloat16, float16 (or float64 on the CPU), got ", type, " on ", q.device());
}

void check_parameter(const char* name, const at::Tensor& parameter, const at::Tensor& q) {
  const auto expected = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  TORCH_CHECK_VALUE(parameter.dim() == 1 && parameter.sym_size(0) == q.sym_size(1), name, ": expected shape (",
                    q.sym_size(1), ",), one value per query head, got ", parameter.sym_sizes());
  TORCH_CHECK_VALUE(parameter.scalar_type() == expected, name, ": expected dtype ", expected, ", got ",
                    parameter.scalar_type());
  TORCH_CHECK_VALUE(parameter.device() == q.device(), name, ": expected the device of q, ", q.device(), ", got ",
                    parameter.device());
}

void check_shapes(const AttentionArguments& a) {
  const c10::SymInt query_heads = a.q1.sym_size(1), query_length = a.q1.sym_size(2), dim = a.q1.sym_size(3);
  const c10::SymInt key_heads = a.k1.sym_size(1), key_length = a.k1.sym_size(2), value_dim = a.v.sym_size(3);
  TORCH_CHECK_VALUE(dim >= 1 && dim <= kLargestHeadDim, "q: expected a head dimension of 1 to ", kLargestHeadDim,
                    ", got shape ", a.q1.sym_sizes());
  TORCH_CHECK_VALUE(query_heads >= 1, "q: expected at least one head, got shape ", a.q1.sym_sizes());
  TORCH_CHECK_VALUE(a.k1.sym_size(0) == a.q1.sym_size(0), "k: expected the batch size of q, ", a.q1.sym_size(0),
                    ", got shape ", a.k1.sym_sizes());
  TORCH_CHECK_VALUE(key_heads >= 1 && query_heads % key_heads == 0, "k: expected a number of heads that divides the ",
                    query_heads, " heads of q, got shape ", a.k1.sym_sizes());
  TORCH_CHECK_VALUE(a.k1.sym_size(3) == dim, "k: expected the head dimension of q, ", dim, ", got shape ",
                    a.k1.sym_sizes());
  TORCH_CHECK_VALUE(query_length <= key_length, "q: expected at most as many rows as k has, ", key_length,
                    ", got shape ", a.q1.sym_sizes());
  TORCH_CHECK_VALUE(
      a.v.sym_size(0) == a.k1.sym_size(0) && a.v.sym_size(1) == key_heads && a.v.sym_size(2) == key_length,
      "v: expected the batch, heads and length of k, (", a.k1.sym_size(0), ", ", key_heads, ", ", key_length,
      "), got shape ", a.v.sym_sizes());
  TORCH_CHECK_VALUE(value_dim == dim || value_dim == dim * 2, "v: expected a head dimension of ", dim, " or ", dim * 2,
                    ", got shape ", a.v.sym_sizes());
}

void check_offsets(const char* name, const at::Tensor& offsets, const at::Tensor& q) {
  TORCH_CHECK_VALUE(offsets.dim() == 1 && offsets.sym_size(0) >= 2, name,
                    ": expected shape (documents + 1,) for one or more documents, got shape ", offsets.sym_sizes());
  TORCH_CHECK_VALUE(offsets.scalar_type() == at::kInt, name, ": expected dtype int32, got ", offsets.scalar_type());
  TORCH_CHECK_VALUE(offsets.device() == q.device(), name, ": expected the device of q, ", q.device(), ", got ",
                    offsets.device());
}

void check_packed(const PackedArguments& packed, const AttentionArguments& a) {
  TORCH_CHECK_VALUE(a.q1.sym_size(0) == 1, "q: expected batch size 1 with packed documents, got shape ",
                    a.q1.sym_sizes());
  check_offsets("cu_seqlens_q", packed.cu_seqlens_q, a.q1);
  check_offsets("cu_seqlens_k", packed.cu_seqlens_k, a.q1);
  TORCH_CHECK_VALUE(packed.cu_seqlens_k.sym_size(0) == packed.cu_seqlens_q.sym_size(0),
                    "cu_seqlens_k: expected the shape of cu_seqlens_q, ", packed.cu_seqlens_q.sym_sizes(), ", got ",
                    packed.cu_seqlens_k.sym_sizes());
  const c10::SymInt queries = a.q1.sym_size(2), keys = a.k1.sym_size(2);
  TORCH_CHECK_VALUE(packed.max_seqlen_q >= 0 && packed.max_seqlen_q <= queries,
                    "max_seqlen_q: expected 0 to the total length of q, ", queries, ", got ", packed.max_seqlen_q);
  TORCH_CHECK_VALUE(packed.max_seqlen_k >= packed.max_seqlen_q && packed.max_seqlen_k <= keys,
                    "max_seqlen_k: expected max_seqlen_q, ", packed.max_seqlen_q, ", to the total length of k, ", keys,
                    ", got ", packed.max_seqlen_k);
}

void check_screening(const ScreeningArguments& screening, const at::Tensor& q) {
  const std::string_view choice = screening.choice;
  TORCH_CHECK_VALUE(choice == "automatic" || choice == "always" || choice == "never",
                    "screening: expected 'automatic', 'always' or 'never', got '", choice, "'");
  if (!screening.counters) return;
  const at::Tensor& counters = *screening.counters;
  TORCH_CHECK_VALUE(
      counters.dim() == 2 && counters.sym_size(0) == q.sym_size(1) && counters.sym_size(1) == kScreeningCounters,
      "screening_counters: expected shape (", q.sym_size(1), ", ", kScreeningCounters,
      "), one row per query head, got ", counters.sym_sizes());
  TORCH_CHECK_VALUE(counters.scalar_type() == at::kInt, "screening_counters: expected dtype int32, got ",
                    counters.scalar_type());
  TORCH_CHECK_VALUE(counters.device() == q.device(), "screening_counters: expected the device of q, ", q.device(),
                    ", got ", counters.device());
  TORCH_CHECK_VALUE(counters.is_contiguous(), "screening_counters: expected a contiguous tensor, got strides ",
                    counters.sym_strides());
}

// Offsets as the user gave them, `count` + 1: from 0 to `total`, never decreasing.
void check_offset_values(const char* name, const std::int32_t* value, std::int64_t count, std::int64_t total) {
  TORCH_CHECK_VALUE(value[0] == 0, name, ": expected 0 first, got ", value[0]);
  for (std::int64_t d = 0; d < count; ++d) {
    TORCH_CHECK_VALUE(value[d] <= value[d + 1], name, ": expected offsets that never decrease, got ", value[d],
                      " and then ", value[d + 1], " for document ", d);
  }
  TORCH_CHECK_VALUE(value[count] == total, name, ": expected the total length ", total, " last, got ", value[count]);
}

void check_longest(const char* name, const std::int32_t* value, std::int64_t count, std::int64_t longest) {
  for (std::int64_t d = 0; d < count; ++d) {
    const std::int64_t length = std::int64_t{value[d + 1]} - value[d];
    TORCH_CHECK_VALUE(length <= longest, name, ": expected at least the length of document ", d, ", ", length, ", got ",
                      longest);
  }
}

}  // namespace

void check_documents(const PackedArguments& packed, const AttentionShape& shape) {
  const at::Tensor query_offsets = packed.cu_seqlens_q.contiguous(), key_offsets = packed.cu_seqlens_k.contiguous();
  const auto* query = query_offsets.const_data_ptr<std::int32_t>();
  const auto* key = key_offsets.const_data_ptr<std::int32_t>();
  const std::int64_t count = query_offsets.numel() - 1;
  check_offset_values("cu_seqlens_q", query, count, shape.query_length);
  check_offset_values("cu_seqlens_k", key, count, shape.key_length);
  check_longest("max_seqlen_k", key, count, packed.max_seqlen_k.expect_int());
  check_longest("max_seqlen_q", query, count, packed.max_seqlen_q.expect_int());
  for (std::int64_t d = 0; d < count; ++d) {
    TORCH_CHECK_VALUE(query[d + 1] - query[d] <= key[d + 1] - key[d],
                      "cu_seqlens_q: expected at most as many queries as keys in document ", d, ", ",
                      key[d + 1] - key[d], ", got ", query[d + 1] - query[d]);
  }
}

void check_arguments(const AttentionArguments& a) {
  TORCH_CHECK_VALUE(a.q1.dim() == 4, "q: expected 4 dimensions (batch, heads, length, dim), got shape ",
                    a.q1.sym_sizes());
  check_dtype(a.q1);
  check_tensor("k", a.k1, a.q1);
  check_tensor("v", a.v, a.q1);
  check_shapes(a);
  check_parameter("beta", a.beta, a.q1);
  TORCH_CHECK_VALUE(a.q2.has_value() == a.k2.has_value() && a.q2.has_value() == a.lam.has_value(),
                    "q2, k2, lam: expected all three (two views) or none (one view)");
  if (a.views() == 2) {
    check_tensor("q2", *a.q2, a.q1);
    check_tensor("k2", *a.k2, a.q1);
    TORCH_CHECK_VALUE(a.q2->sym_sizes() == a.q1.sym_sizes(), "q2: expected the shape of q1, ", a.q1.sym_sizes(),
                      ", got ", a.q2->sym_sizes());
    TORCH_CHECK_VALUE(a.k2->sym_sizes() == a.k1.sym_sizes(), "k2: expected the shape of k1, ", a.k1.sym_sizes(),
                      ", got ", a.k2->sym_sizes());
    check_parameter("lam", *a.lam, a.q1);
  }
  if (a.packed) check_packed(*a.packed, a);
  check_screening(a.screening, a.q1);
  TORCH_CHECK_VALUE(std::isfinite(a.kappa) && a.kappa > 0.0, "kappa: expected a finite number above 0, got ", a.kappa);
  TORCH_CHECK_VALUE(std::isfinite(a.power) && a.power >= 1.0, "power: expected a finite number of at least 1, got ",
                    a.power);
}

void check_per_head(const char* name, const at::Tensor& parameter, const at::Tensor& q) {
  TORCH_CHECK_VALUE(q.dim() == 4, "q: expected 4 dimensions (batch, heads, length, dim), got shape ", q.sym_sizes());
  TORCH_CHECK_VALUE(parameter.dim() == 0 || (parameter.dim() == 1 && parameter.sym_size(0) == q.sym_size(1)), name,
                    ": expected a number, a 0-d tensor or a tensor of shape (", q.sym_size(1),
                    ",), one value per query head, got shape ", parameter.sym_sizes());
  TORCH_CHECK_VALUE(at::isFloatingType(parameter.scalar_type()), name, ": expected a floating-point dtype, got ",
                    parameter.scalar_type());
  TORCH_CHECK_VALUE(parameter.device() == q.device(), name, ": expected the device of q, ", q.device(), ", got ",
                    parameter.device());
}

void check_finite(const char* name, const at::Tensor& parameter) {
  const at::Tensor values = parameter.to(at::kDouble).contiguous();
  const auto* value = values.const_data_ptr<double>();
  for (std::int64_t h = 0; h < values.numel(); ++h) {
    TORCH_CHECK_VALUE(std::isfinite(value[h]), name, ": expected finite values, got ", value[h], " for head ", h);
  }
}

AttentionShape attention_shape(const AttentionArguments& a) {
  return {a.q1.size(0), a.q1.size(1), a.k1.size(1), a.q1.size(2), a.k1.size(2), a.q1.size(3), a.v.size(3)};
}

AttentionOptions attention_options(const AttentionArguments& a) {
  AttentionOptions options;
  switch (a.q1.scalar_type()) {
    case at::kBFloat16:
      options.data_type = DataType::kBFloat16;
      break;
    case at::kHalf:
      options.data_type = DataType::kFloat16;
      break;
    case at::kDouble:
      options.data_type = DataType::kFloat64;
      break;
    default:
      options.data_type = DataType::kFloat32;
  }
  options.views = a.views();
  options.kappa = a.kappa;
  options.power = a.power;
  options.normalize = a.normalize;
  return options;
}

CudaAttentionOptions cuda_attention_options(const ScreeningArguments& screening) {
  CudaAttentionOptions options;
  options.screening = screening.choice == "always"  ? Screening::kAlways
                      : screening.choice == "never" ? Screening::kNever
                                                    : Screening::kAutomatic;
  if (screening.counters) {
    options.screening_counters = static_cast<ScreeningCounters*>(screening.counters->mutable_data_ptr());
  }
  return options;
}

std::optional<PackedDocuments> attention_documents(const AttentionArguments& a) {
  if (!a.packed) return std::nullopt;
  const auto value = [](const c10::SymInt& x) { return x.guard_int(__FILE__, __LINE__); };
  PackedDocuments documents;
  documents.count = value(a.packed->cu_seqlens_q.sym_size(0)) - 1;
  documents.longest_query = value(a.packed->max_seqlen_q);
  documents.longest_key = value(a.packed->max_seqlen_k);
  return documents;
}

std::int64_t saved_index_bytes(const AttentionShape& shape, const AttentionOptions& options,
                               const PackedDocuments* documents) {
  const std::size_t on_cpu = attention_survivor_index_bytes(shape, options, documents);
  // CUDA has no float64: an index for it would stay unwritten.
  if (options.data_type == DataType::kFloat64) return static_cast<std::int64_t>(on_cpu);
  return static_cast<std::int64_t>(std::max(on_cpu, attention_cuda_survivor_index_bytes(shape, options, documents)));
}

at::Tensor empty_stored_like(const at::Tensor& x, const c10::SymInt& dim) {
  const c10::SymInt batch = x.sym_size(0), heads = x.sym_size(1), length = x.sym_size(2);
  if (x.sym_stride(1) < x.sym_stride(2)) {
    return at::empty_symint({batch, length, heads, dim}, x.options()).transpose(1, 2);
  }
  return at::empty_symint({batch, heads, length, dim}, x.options());
}

}  // namespace tda
