#include "attention/reference/reference_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "attention/reference/element_conversion.h"

namespace tda {
namespace {

constexpr double kNormEpsilon = 1e-12;
constexpr double kNaN = std::numeric_limits<double>::quiet_NaN();

// A (length, dim) matrix in double.
struct Matrix {
  std::int64_t dim = 0;
  std::vector<double> values;
  Matrix(std::int64_t length, std::int64_t dim_) : dim(dim_), values(static_cast<std::size_t>(length * dim_)) {}
  double* row(std::int64_t i) { return values.data() + i * dim; }
  const double* row(std::int64_t i) const { return values.data() + i * dim; }
};

Matrix load_matrix(DataType type, const ConstTensor& tensor, std::int64_t batch, std::int64_t head, std::int64_t length,
                   std::int64_t dim) {
  Matrix matrix(length, dim);
  for (std::int64_t i = 0; i < length; ++i) {
    const std::int64_t start = batch * tensor.batch_stride + head * tensor.head_stride + i * tensor.row_stride;
    for (std::int64_t c = 0; c < dim; ++c) matrix.row(i)[c] = load_element(type, tensor.data, start + c);
  }
  return matrix;
}

void store_matrix(DataType type, const Tensor& tensor, std::int64_t batch, std::int64_t head, std::int64_t length,
                  const Matrix& matrix) {
  if (!tensor.data) return;
  for (std::int64_t i = 0; i < length; ++i) {
    const std::int64_t start = batch * tensor.batch_stride + head * tensor.head_stride + i * tensor.row_stride;
    for (std::int64_t c = 0; c < matrix.dim; ++c) store_element(type, tensor.data, start + c, matrix.row(i)[c]);
  }
}

double dot(const double* a, const double* b, std::int64_t dim) {
  double sum = 0.0;
  for (std::int64_t c = 0; c < dim; ++c) sum += a[c] * b[c];
  return sum;
}

// x <- x + weight * y
void add_scaled(double* x, double weight, const double* y, std::int64_t dim) {
  for (std::int64_t c = 0; c < dim; ++c) x[c] += weight * y[c];
}

// Queries or keys of one head as the scores use them, and what their gradient needs.
struct UnitVectors {
  Matrix unit;               // x / max(|x|, 1e-12), or x itself without normalization
  std::vector<double> norm;  // |x|
};

UnitVectors unit_vectors(Matrix x, std::int64_t length, bool normalize) {
  UnitVectors result{std::move(x), std::vector<double>(static_cast<std::size_t>(length), 1.0)};
  for (std::int64_t i = 0; i < length; ++i) {
    double* row = result.unit.row(i);
    const std::int64_t dim = result.unit.dim;
    const bool finite = std::all_of(row, row + dim, [](double value) { return std::isfinite(value); });
    if (!finite) {
      std::fill(row, row + dim, kNaN);
      continue;
    }
    if (!normalize) continue;
    const double norm = std::sqrt(dot(row, row, dim));
    result.norm[static_cast<std::size_t>(i)] = norm;
    for (std::int64_t c = 0; c < dim; ++c) row[c] /= std::max(norm, kNormEpsilon);
  }
  return result;
}

// Turns dL/d(unit vectors) into dL/dx in place: dx = (du - u <u, du>) / |x|, or du / 1e-12 where the norm was clamped.
void l2_norm_backward(const UnitVectors& x, std::int64_t length, bool normalize, Matrix& gradient) {
  if (!normalize) return;
  const std::int64_t dim = gradient.dim;
  for (std::int64_t i = 0; i < length; ++i) {
    double* row = gradient.row(i);
    const double* unit = x.unit.row(i);
    const double norm = x.norm[static_cast<std::size_t>(i)];
    if (norm > kNormEpsilon) add_scaled(row, -dot(unit, row, dim), unit, dim);
    for (std::int64_t c = 0; c < dim; ++c) row[c] /= std::max(norm, kNormEpsilon);
  }
}

// a = (s - tau)_+^p. A NaN score gives a NaN weight.
double weight(double score, double tau, double power) {
  const double r = score - tau;
  if (r <= 0.0) return 0.0;
  return std::pow(r, power);
}

// da/ds = p (s - tau)_+^(p-1), 0 at the threshold also for p = 1.
double weight_derivative(double score, double tau, double power) {
  const double r = score - tau;
  if (r <= 0.0) return 0.0;
  if (std::isnan(r)) return r;  // pow(NaN, 0) is 1
  return power * std::pow(r, power - 1.0);
}

// Everything about one (batch, query head) that both passes use.
struct Head {
  std::int64_t batch, query_head, key_head;
  double beta, lambda, lambda_clamped;
  Matrix v;
  std::vector<UnitVectors> q, k;  // one per view
};

Head load_head(const AttentionShape& s, const AttentionOptions& o, const AttentionInputs& in, std::int64_t batch,
               std::int64_t head) {
  const std::int64_t key_head = head / (s.query_heads / s.key_heads);
  const DataType parameter_type = o.data_type == DataType::kFloat64 ? DataType::kFloat64 : DataType::kFloat32;
  Head result{batch,
              head,
              key_head,
              load_element(parameter_type, in.beta, head),
              0.0,
              0.0,
              load_matrix(o.data_type, in.v, batch, key_head, s.key_length, s.value_dim),
              {},
              {}};
  if (o.views == 2) {
    result.lambda = load_element(parameter_type, in.lambda, head);
    result.lambda_clamped = std::clamp(result.lambda, 0.0, 1.0);
  }
  for (int view = 0; view < o.views; ++view) {
    result.q.push_back(unit_vectors(load_matrix(o.data_type, in.q[view], batch, head, s.query_length, s.head_dim),
                                    s.query_length, o.normalize));
    result.k.push_back(unit_vectors(load_matrix(o.data_type, in.k[view], batch, key_head, s.key_length, s.head_dim),
                                    s.key_length, o.normalize));
  }
  return result;
}

// Gradients of one key head, which its group of query heads adds up.
struct KeyGradients {
  std::vector<Matrix> dk;  // with respect to the unit keys until the L2 norm is undone
  Matrix dv;
};

// Adds the gradients that pass through one query head. dq is with respect to the unit queries.
void backward_head(const AttentionShape& s, const AttentionOptions& o, const Head& head, const Matrix& d_output,
                   std::vector<Matrix>& dq, KeyGradients& keys, double& dbeta, double& dlambda_clamped) {
  for (std::int64_t i = 0; i < s.query_length; ++i) {
    const std::int64_t position = s.key_length - s.query_length + i;
    const double c = reference_threshold_scale(position, s.head_dim, o.kappa);
    const double tau = head.beta * c;
    const double* du = d_output.row(i);
    for (std::int64_t j = 0; j <= position; ++j) {
      for (int view = 0; view < o.views; ++view) {
        const double* q = head.q[static_cast<std::size_t>(view)].unit.row(i);
        const double* k = head.k[static_cast<std::size_t>(view)].unit.row(j);
        const double score = dot(q, k, s.head_dim);
        const double a = weight(score, tau, o.power);
        if (a == 0.0) continue;
        const double dp = dot(du, head.v.row(j), s.value_dim);                       // dP_ij = <du_i, v_j>
        const double view_weight = view == 0 ? 1.0 : -head.lambda_clamped;           // w_1 = 1, w_2 = -lambda
        const double g = view_weight * dp * weight_derivative(score, tau, o.power);  // dL/ds_ij
        add_scaled(keys.dv.row(j), view_weight * a, du, s.value_dim);
        add_scaled(dq[static_cast<std::size_t>(view)].row(i), g, k, s.head_dim);
        add_scaled(keys.dk[static_cast<std::size_t>(view)].row(j), g, q, s.head_dim);
        dbeta -= c * g;
        if (view == 1) dlambda_clamped -= a * dp;
      }
    }
  }
}

}  // namespace

double reference_threshold_scale(std::int64_t position, std::int64_t head_dim, double kappa) {
  const double log_ratio = std::log(static_cast<double>(position + 1) / kappa);
  return std::sqrt(2.0 * std::max(0.0, log_ratio) / static_cast<double>(head_dim));
}

std::vector<double> reference_scores(const AttentionShape& s, const AttentionOptions& o, const AttentionInputs& in,
                                     int view, std::int64_t batch, std::int64_t query_head) {
  const Head head = load_head(s, o, in, batch, query_head);
  std::vector<double> scores(static_cast<std::size_t>(s.query_length * s.key_length),
                             -std::numeric_limits<double>::infinity());
  for (std::int64_t i = 0; i < s.query_length; ++i) {
    for (std::int64_t j = 0; j <= s.key_length - s.query_length + i; ++j) {
      scores[static_cast<std::size_t>(i * s.key_length + j)] =
          dot(head.q[static_cast<std::size_t>(view)].unit.row(i), head.k[static_cast<std::size_t>(view)].unit.row(j),
              s.head_dim);
    }
  }
  return scores;
}

void reference_forward(const AttentionShape& s, const AttentionOptions& o, const AttentionInputs& in,
                       const ForwardOutputs& outputs) {
  for (std::int64_t batch = 0; batch < s.batch; ++batch) {
    for (std::int64_t query_head = 0; query_head < s.query_heads; ++query_head) {
      const Head head = load_head(s, o, in, batch, query_head);
      Matrix output(s.query_length, s.value_dim);
      for (std::int64_t i = 0; i < s.query_length; ++i) {
        const std::int64_t position = s.key_length - s.query_length + i;
        const double tau = head.beta * reference_threshold_scale(position, s.head_dim, o.kappa);
        std::int32_t survivors = 0;
        for (std::int64_t j = 0; j <= position; ++j) {
          const double a1 = weight(dot(head.q[0].unit.row(i), head.k[0].unit.row(j), s.head_dim), tau, o.power);
          const double a2 =
              o.views == 2 ? weight(dot(head.q[1].unit.row(i), head.k[1].unit.row(j), s.head_dim), tau, o.power) : 0.0;
          if (a1 == 0.0 && a2 == 0.0) continue;
          ++survivors;
          const double difference = a1 - head.lambda_clamped * a2;
          if (difference != 0.0) add_scaled(output.row(i), difference, head.v.row(j), s.value_dim);
        }
        if (outputs.survivors) outputs.survivors[(batch * s.query_heads + query_head) * s.query_length + i] = survivors;
      }
      store_matrix(o.data_type, outputs.output, batch, query_head, s.query_length, output);
    }
  }
}

void reference_backward(const AttentionShape& s, const AttentionOptions& o, const AttentionInputs& in,
                        const ConstTensor& d_output, const BackwardOutputs& outputs) {
  const auto views = static_cast<std::size_t>(o.views);
  const std::int64_t group = s.query_heads / s.key_heads;
  std::vector<double> dbeta(static_cast<std::size_t>(s.query_heads)), dlambda(static_cast<std::size_t>(s.query_heads));
  for (std::int64_t batch = 0; batch < s.batch; ++batch) {
    for (std::int64_t key_head = 0; key_head < s.key_heads; ++key_head) {
      KeyGradients keys{std::vector<Matrix>(views, Matrix(s.key_length, s.head_dim)),
                        Matrix(s.key_length, s.value_dim)};
      for (std::int64_t query_head = key_head * group; query_head < (key_head + 1) * group; ++query_head) {
        const Head head = load_head(s, o, in, batch, query_head);
        const Matrix du = load_matrix(o.data_type, d_output, batch, query_head, s.query_length, s.value_dim);
        std::vector<Matrix> dq(views, Matrix(s.query_length, s.head_dim));
        double dlambda_clamped = 0.0;
        backward_head(s, o, head, du, dq, keys, dbeta[static_cast<std::size_t>(query_head)], dlambda_clamped);
        const bool inside = head.lambda >= 0.0 && head.lambda <= 1.0;
        if (inside) dlambda[static_cast<std::size_t>(query_head)] += dlambda_clamped;
        for (std::size_t view = 0; view < views; ++view) {
          l2_norm_backward(head.q[view], s.query_length, o.normalize, dq[view]);
          store_matrix(o.data_type, outputs.dq[view], batch, query_head, s.query_length, dq[view]);
        }
      }
      for (std::size_t view = 0; view < views; ++view) {
        const UnitVectors k = unit_vectors(
            load_matrix(o.data_type, in.k[view], batch, key_head, s.key_length, s.head_dim), s.key_length, o.normalize);
        l2_norm_backward(k, s.key_length, o.normalize, keys.dk[view]);
        store_matrix(o.data_type, outputs.dk[view], batch, key_head, s.key_length, keys.dk[view]);
      }
      store_matrix(o.data_type, outputs.dv, batch, key_head, s.key_length, keys.dv);
    }
  }
  const DataType parameter_type = o.data_type == DataType::kFloat64 ? DataType::kFloat64 : DataType::kFloat32;
  for (std::int64_t h = 0; h < s.query_heads; ++h) {
    if (outputs.dbeta) store_element(parameter_type, outputs.dbeta, h, dbeta[static_cast<std::size_t>(h)]);
    if (outputs.dlambda && o.views == 2) {
      store_element(parameter_type, outputs.dlambda, h, dlambda[static_cast<std::size_t>(h)]);
    }
  }
}

}  // namespace tda
