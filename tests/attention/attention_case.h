// One test case of the operator: shape, options, inputs with their storage, and ways to run it.
#pragma once

#include <memory>
#include <string>

#include "tensor_buffer.h"

namespace tda::test {

struct Layouts {
  Layout q = Layout::kContiguous;
  Layout k = Layout::kContiguous;
  Layout v = Layout::kContiguous;
  Layout output = Layout::kContiguous;
};

struct AttentionCase {
  AttentionShape shape;
  AttentionOptions options;
  Layouts layouts;
  std::vector<TensorBuffer> q, k;         // one per view
  std::vector<TensorBuffer> v, d_output;  // one each
  // Offsets of packed documents (PackedDocuments); empty without.
  std::vector<std::int32_t> query_offsets, key_offsets;
  std::vector<double> beta, lambda;  // per query head, as doubles that the parameter type holds exactly

  // Inputs filled with iid normal values, d_output too; beta 1 and lambda 0.5.
  AttentionCase(const AttentionShape& shape, const AttentionOptions& options, const Layouts& layouts,
                std::mt19937_64& random);

  DataType parameter_type() const {
    return options.data_type == DataType::kFloat64 ? DataType::kFloat64 : DataType::kFloat32;
  }
  std::string describe() const;
  std::int64_t document_count() const { return static_cast<std::int64_t>(query_offsets.size()) - 1; }

  // The same numbers as contiguous float64 tensors: what the reference computes from it carries no rounding.
  AttentionCase in_double() const;
};

// AttentionInputs that point into a case, with beta and lambda in the parameter type.
class CaseInputs {
 public:
  explicit CaseInputs(const AttentionCase& test_case);
  const AttentionInputs& get() const { return inputs_; }

 private:
  std::vector<double> beta_, lambda_;  // raw storage for float or double
  AttentionInputs inputs_;
};

// What a run wrote, as doubles in (b, h, t, c) order. Gradients are empty after a forward only.
struct Results {
  std::vector<double> output, dv, dbeta, dlambda;
  std::vector<double> dq[2], dk[2];
  std::vector<std::int32_t> survivors;
  bool gaps_untouched = true;
};

enum class Implementation { kReference, kOperator };

// Runs forward and, with `backward`, the gradients of sum(output * d_output). Outputs, workspace and index are
// pre-filled with NaN patterns so that nothing unwritten goes unnoticed. Throws std::runtime_error on a bad Status. The
// reference knows no packed documents.
Results run(const AttentionCase& test_case, Implementation implementation, bool backward);

// tau of query row `row` in head `head`.
double threshold(const AttentionCase& test_case, std::int64_t head, std::int64_t row);

}  // namespace tda::test
