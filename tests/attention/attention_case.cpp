#include "attention_case.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <sstream>
#include <stdexcept>

#include "attention/reference/element_conversion.h"
#include "attention/reference/reference_attention.h"
#include "operator_under_test.h"

namespace tda::test {
namespace {

constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// `bytes` bytes aligned to 64 and filled with a pattern that is NaN in every data type, followed by a checked guard.
class ScratchMemory {
 public:
  explicit ScratchMemory(std::size_t bytes) : bytes_(bytes), storage_(bytes + 64 + kGuard, 0xFF) {
    void* pointer = storage_.data();
    std::size_t space = storage_.size();
    begin_ = static_cast<unsigned char*>(std::align(64, bytes + kGuard, pointer, space));
  }
  void* data() { return begin_; }
  std::size_t bytes() const { return bytes_; }
  bool guard_untouched() const {
    for (std::size_t i = 0; i < kGuard; ++i) {
      if (begin_[bytes_ + i] != 0xFF) return false;
    }
    return true;
  }

 private:
  static constexpr std::size_t kGuard = 256;
  std::size_t bytes_;
  std::vector<unsigned char> storage_;
  unsigned char* begin_;
};

void require_ok(const Status& status) {
  if (!status.ok()) throw std::runtime_error(status.message);
}

const char* type_name(DataType type) {
  switch (type) {
    case DataType::kFloat32:
      return "fp32";
    case DataType::kBFloat16:
      return "bf16";
    case DataType::kFloat16:
      return "fp16";
    case DataType::kFloat64:
      return "fp64";
  }
  return "?";
}

PackedDocuments packed_documents(const AttentionCase& c) {
  PackedDocuments documents{c.query_offsets.data(), c.key_offsets.data(), c.document_count()};
  for (std::size_t d = 0; d + 1 < c.query_offsets.size(); ++d) {
    documents.longest_query =
        std::max<std::int64_t>(documents.longest_query, c.query_offsets[d + 1] - c.query_offsets[d]);
    documents.longest_key = std::max<std::int64_t>(documents.longest_key, c.key_offsets[d + 1] - c.key_offsets[d]);
  }
  return documents;
}

std::vector<double> parameter_values(DataType type, const std::vector<double>& raw, std::int64_t count) {
  std::vector<double> result;
  for (std::int64_t h = 0; h < count; ++h) result.push_back(load_element(type, raw.data(), h));
  return result;
}

}  // namespace

AttentionCase::AttentionCase(const AttentionShape& s, const AttentionOptions& o, const Layouts& l,
                             std::mt19937_64& random)
    : shape(s), options(o), layouts(l) {
  for (int view = 0; view < o.views; ++view) {
    q.emplace_back(o.data_type, std::array{s.batch, s.query_heads, s.query_length, s.head_dim}, l.q);
    k.emplace_back(o.data_type, std::array{s.batch, s.key_heads, s.key_length, s.head_dim}, l.k);
    q.back().fill_normal(random, 1.0);
    k.back().fill_normal(random, 1.0);
  }
  v.emplace_back(o.data_type, std::array{s.batch, s.key_heads, s.key_length, s.value_dim}, l.v);
  v.back().fill_normal(random, 1.0);
  d_output.emplace_back(o.data_type, std::array{s.batch, s.query_heads, s.query_length, s.value_dim}, l.output);
  d_output.back().fill_normal(random, 1.0);
  beta.assign(static_cast<std::size_t>(s.query_heads), 1.0);
  lambda.assign(static_cast<std::size_t>(s.query_heads), 0.5);
}

std::string AttentionCase::describe() const {
  std::ostringstream out;
  out << type_name(options.data_type) << " views " << options.views << " B " << shape.batch << " H "
      << shape.query_heads << "/" << shape.key_heads << " T " << shape.query_length << "/" << shape.key_length << " D "
      << shape.head_dim << "/" << shape.value_dim << " p " << options.power << " kappa " << options.kappa
      << " normalize " << options.normalize << " threads " << options.threads << " layouts "
      << static_cast<int>(layouts.q) << static_cast<int>(layouts.k) << static_cast<int>(layouts.v)
      << static_cast<int>(layouts.output) << " beta";
  for (double b : beta) out << ' ' << b;
  if (options.views == 2) {
    out << " lambda";
    for (double l : lambda) out << ' ' << l;
  }
  return out.str();
}

AttentionCase AttentionCase::in_double() const {
  const auto convert = [](std::vector<TensorBuffer>& buffers) {
    for (TensorBuffer& buffer : buffers) {
      TensorBuffer wide(DataType::kFloat64, buffer.sizes(), Layout::kContiguous);
      const std::vector<double> values = buffer.values();
      std::size_t next = 0;
      for (std::int64_t b = 0; b < buffer.sizes()[0]; ++b) {
        for (std::int64_t h = 0; h < buffer.sizes()[1]; ++h) {
          for (std::int64_t t = 0; t < buffer.sizes()[2]; ++t) {
            for (std::int64_t c = 0; c < buffer.sizes()[3]; ++c) wide.set(b, h, t, c, values[next++]);
          }
        }
      }
      buffer = wide;
    }
  };
  AttentionCase wide = *this;
  wide.options.data_type = DataType::kFloat64;
  wide.layouts = {};
  for (auto* buffers : {&wide.q, &wide.k, &wide.v, &wide.d_output}) convert(*buffers);
  return wide;
}

CaseInputs::CaseInputs(const AttentionCase& c) : beta_(c.beta.size()), lambda_(c.lambda.size()) {
  const DataType type = c.parameter_type();
  for (std::size_t h = 0; h < c.beta.size(); ++h) {
    store_element(type, beta_.data(), static_cast<std::int64_t>(h), c.beta[h]);
    store_element(type, lambda_.data(), static_cast<std::int64_t>(h), c.lambda[h]);
  }
  for (std::size_t view = 0; view < c.q.size(); ++view) {
    inputs_.q[view] = c.q[view].view();
    inputs_.k[view] = c.k[view].view();
  }
  inputs_.v = c.v[0].view();
  inputs_.beta = beta_.data();
  inputs_.lambda = c.options.views == 2 ? lambda_.data() : nullptr;
}

Results run(const AttentionCase& c, Implementation implementation, bool backward) {
  const bool reference = implementation == Implementation::kReference;
  const AttentionShape& s = c.shape;
  const CaseInputs inputs(c);
  const PackedDocuments packed = packed_documents(c);
  const PackedDocuments* const documents = c.query_offsets.empty() ? nullptr : &packed;
  Results results;
  results.survivors.assign(static_cast<std::size_t>(s.batch * s.query_heads * s.query_length), -1);
  TensorBuffer output(c.options.data_type, c.d_output[0].sizes(), c.layouts.output);
  ScratchMemory index(reference ? 0 : operator_index_bytes(s, c.options, documents));
  ForwardOutputs forward;
  forward.output = output.mutable_view();
  forward.survivors = results.survivors.data();
  if (reference) {
    reference_forward(s, c.options, inputs.get(), forward);
  } else {
    // Without a gradient no index is asked for.
    if (backward) forward.survivor_index = index.data();
    ScratchMemory workspace(operator_forward_workspace_bytes(s, c.options, documents));
    require_ok(operator_forward(s, c.options, inputs.get(), forward, workspace.data(), workspace.bytes(), documents));
    results.gaps_untouched = workspace.guard_untouched() && index.guard_untouched();
  }
  results.output = output.values();
  results.gaps_untouched = results.gaps_untouched && output.gaps_untouched();
  if (!backward) return results;

  std::vector<TensorBuffer> gradients;
  gradients.reserve(5);
  BackwardOutputs out;
  for (std::size_t view = 0; view < c.q.size(); ++view) {
    gradients.emplace_back(c.options.data_type, c.q[view].sizes(), c.layouts.output);
    out.dq[view] = gradients.back().mutable_view();
    gradients.emplace_back(c.options.data_type, c.k[view].sizes(), c.layouts.output);
    out.dk[view] = gradients.back().mutable_view();
  }
  gradients.emplace_back(c.options.data_type, c.v[0].sizes(), c.layouts.output);
  out.dv = gradients.back().mutable_view();
  std::vector<double> dbeta(c.beta.size(), kNaN), dlambda(c.beta.size(), kNaN);
  out.dbeta = dbeta.data();
  out.dlambda = c.options.views == 2 ? dlambda.data() : nullptr;
  if (reference) {
    reference_backward(s, c.options, inputs.get(), c.d_output[0].view(), out);
  } else {
    ScratchMemory workspace(operator_backward_workspace_bytes(s, c.options, documents));
    require_ok(operator_backward(s, c.options, inputs.get(), c.d_output[0].view(), index.data(), out, workspace.data(),
                                 workspace.bytes(), documents));
    results.gaps_untouched = results.gaps_untouched && workspace.guard_untouched() && index.guard_untouched();
  }
  for (std::size_t view = 0; view < c.q.size(); ++view) {
    results.dq[view] = gradients[2 * view].values();
    results.dk[view] = gradients[2 * view + 1].values();
  }
  results.dv = gradients.back().values();
  for (const TensorBuffer& gradient : gradients) {
    results.gaps_untouched = results.gaps_untouched && gradient.gaps_untouched();
  }
  results.dbeta = parameter_values(c.parameter_type(), dbeta, s.query_heads);
  if (c.options.views == 2) results.dlambda = parameter_values(c.parameter_type(), dlambda, s.query_heads);
  return results;
}

double threshold(const AttentionCase& c, std::int64_t head, std::int64_t row) {
  const std::int64_t position = c.shape.key_length - c.shape.query_length + row;
  return c.beta[static_cast<std::size_t>(head)] *
         reference_threshold_scale(position, c.shape.head_dim, c.options.kappa);
}

}  // namespace tda::test
