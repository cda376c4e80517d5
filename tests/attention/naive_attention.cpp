#include "naive_attention.h"

#include <algorithm>
#include <cmath>

#include "attention/reference/element_conversion.h"
#include "attention/reference/reference_attention.h"

namespace tda::test {
namespace {

// Sums as a tensor library does: in fp32 for every type up to fp32, in fp64 for fp64, last term first so that the
// order differs from the reference.
double accumulate(DataType type, std::int64_t count, auto term) {
  if (type == DataType::kFloat64) {
    double sum = 0.0;
    for (std::int64_t i = count - 1; i >= 0; --i) sum += term(i);
    return sum;
  }
  float sum = 0.0F;
  for (std::int64_t i = count - 1; i >= 0; --i) sum += static_cast<float>(term(i));
  return static_cast<double>(sum);
}

struct Rows {
  std::int64_t dim = 0;
  std::vector<double> x;
  const double* operator[](std::int64_t i) const { return x.data() + i * dim; }
};

// Unit vectors of one head, rounded and exact.
struct Units {
  Rows rounded, exact;
  std::vector<double> norm;  // rounded
};

Rows load_rows(const TensorBuffer& buffer, std::int64_t b, std::int64_t h) {
  Rows rows{buffer.sizes()[3], {}};
  for (std::int64_t t = 0; t < buffer.sizes()[2]; ++t) {
    for (std::int64_t c = 0; c < rows.dim; ++c) rows.x.push_back(buffer.get(b, h, t, c));
  }
  return rows;
}

Units load_units(const AttentionCase& test_case, const TensorBuffer& buffer, std::int64_t b, std::int64_t h) {
  const DataType type = test_case.options.data_type;
  Units units{load_rows(buffer, b, h), load_rows(buffer, b, h), {}};
  const std::int64_t dim = units.exact.dim;
  for (std::int64_t t = 0; t < buffer.sizes()[2]; ++t) {
    double* exact = units.exact.x.data() + t * dim;
    double* rounded = units.rounded.x.data() + t * dim;
    if (!std::all_of(exact, exact + dim, [](double x) { return std::isfinite(x); })) {
      std::fill(exact, exact + dim, std::nan(""));
      std::fill(rounded, rounded + dim, std::nan(""));
    }
    units.norm.push_back(1.0);
    if (!test_case.options.normalize) continue;
    double square = 0.0;
    for (std::int64_t c = 0; c < dim; ++c) square += exact[c] * exact[c];
    const double norm =
        round_to(type, std::sqrt(accumulate(type, dim, [&](std::int64_t c) { return rounded[c] * rounded[c]; })));
    units.norm.back() = std::max(norm, 1e-12);
    for (std::int64_t c = 0; c < dim; ++c) {
      rounded[c] = round_to(type, rounded[c] / units.norm.back());
      exact[c] /= std::max(std::sqrt(square), 1e-12);
    }
  }
  return units;
}

// Weight and its derivative of one pair in one view.
struct Pair {
  double a = 0.0, slope = 0.0;
};

Pair pair(DataType type, double score, double tau, double power) {
  const double r = round_to(type, score - tau);
  if (r <= 0.0) return {};
  if (std::isnan(r)) return {r, r};
  return {round_to(type, std::pow(r, power)), round_to(type, power * round_to(type, std::pow(r, power - 1.0)))};
}

// One (batch, query head): the matrices of weights and of dL/ds, row-major (T_q, T_k), and the sums over rows.
struct HeadMatrices {
  std::vector<double> weights;  // a1 - lambda a2
  std::vector<double> g[2];     // dL/ds per view
  double dbeta = 0.0, dlambda = 0.0, dbeta_error = 0.0, dlambda_error = 0.0;
};

struct HeadInputs {
  const AttentionCase& test_case;
  std::vector<Units> q, k;
  Rows v, du;
  std::int64_t head;
};

double dot_exact(const double* x, const double* y, std::int64_t dim) {
  double sum = 0.0;
  for (std::int64_t c = 0; c < dim; ++c) sum += x[c] * y[c];
  return sum;
}

HeadMatrices head_matrices(const HeadInputs& in) {
  const AttentionShape& s = in.test_case.shape;
  const DataType type = in.test_case.options.data_type;
  const double power = in.test_case.options.power;
  const double lambda = std::clamp(in.test_case.lambda[static_cast<std::size_t>(in.head)], 0.0, 1.0);
  const auto pairs = static_cast<std::size_t>(s.query_length * s.key_length);
  HeadMatrices m;
  m.weights.assign(pairs, 0.0);
  for (auto& g : m.g) g.assign(pairs, 0.0);
  for (std::int64_t i = 0; i < s.query_length; ++i) {
    const std::int64_t position = s.key_length - s.query_length + i;
    const double c = reference_threshold_scale(position, s.head_dim, in.test_case.options.kappa);
    const double tau = threshold(in.test_case, in.head, i);
    double row_g = 0.0, row_lambda = 0.0;
    for (std::int64_t j = 0; j <= position; ++j) {
      const auto ij = static_cast<std::size_t>(i * s.key_length + j);
      const double* du = in.du[i];
      const double* v = in.v[j];
      Pair rounded[2], exact[2];
      bool any = false;
      for (std::size_t view = 0; view < in.q.size(); ++view) {
        const double* q = in.q[view].rounded[i];
        const double* k = in.k[view].rounded[j];
        const double score = round_to(type, accumulate(type, s.head_dim, [&](std::int64_t d) { return q[d] * k[d]; }));
        rounded[view] = pair(type, score, tau, power);
        exact[view] =
            pair(DataType::kFloat64, dot_exact(in.q[view].exact[i], in.k[view].exact[j], s.head_dim), tau, power);
        any = any || rounded[view].a != 0.0 || exact[view].a != 0.0;
      }
      if (!any) continue;
      m.weights[ij] = round_to(type, rounded[0].a - round_to(type, lambda * rounded[1].a));
      const double dp = round_to(type, accumulate(type, s.value_dim, [&](std::int64_t d) { return du[d] * v[d]; }));
      const double dp_exact = dot_exact(du, v, s.value_dim);
      for (std::size_t view = 0; view < in.q.size(); ++view) {
        const double w = view == 0 ? 1.0 : -lambda;
        m.g[view][ij] = round_to(type, round_to(type, w * dp) * rounded[view].slope);
        row_g += m.g[view][ij];
        m.dbeta_error += c * std::fabs(m.g[view][ij] - w * dp_exact * exact[view].slope);
      }
      const double term = round_to(type, rounded[1].a * dp);
      row_lambda -= term;
      m.dlambda_error += std::fabs(term - exact[1].a * dp_exact);
    }
    m.dbeta -= c * row_g;
    m.dlambda += row_lambda;
  }
  return m;
}

// Undoes the L2 norm of one row of dL/d(unit vector), rounding each step.
void l2_norm_backward(DataType type, const Units& units, std::int64_t row, bool normalize, double* gradient) {
  const std::int64_t dim = units.rounded.dim;
  for (std::int64_t c = 0; c < dim; ++c) gradient[c] = round_to(type, gradient[c]);
  if (!normalize) return;
  const double* unit = units.rounded[row];
  const double norm = units.norm[static_cast<std::size_t>(row)];
  const double along =
      norm > 1e-12 ? round_to(type, accumulate(type, dim, [&](std::int64_t c) { return unit[c] * gradient[c]; })) : 0.0;
  for (std::int64_t c = 0; c < dim; ++c) {
    gradient[c] = round_to(type, round_to(type, gradient[c] - round_to(type, along * unit[c])) / norm);
  }
}

// One key head of one batch: the query heads that share it.
struct Group {
  std::int64_t batch, key_head;
  std::vector<HeadInputs> inputs;
  std::vector<HeadMatrices> matrices;
};

Group load_group(const AttentionCase& test_case, std::int64_t batch, std::int64_t key_head) {
  const std::int64_t size = test_case.shape.query_heads / test_case.shape.key_heads;
  Group group{batch, key_head, {}, {}};
  for (std::int64_t h = key_head * size; h < (key_head + 1) * size; ++h) {
    HeadInputs in{
        test_case, {}, {}, load_rows(test_case.v[0], batch, key_head), load_rows(test_case.d_output[0], batch, h), h};
    for (std::size_t view = 0; view < test_case.q.size(); ++view) {
      in.q.push_back(load_units(test_case, test_case.q[view], batch, h));
      in.k.push_back(load_units(test_case, test_case.k[view], batch, key_head));
    }
    group.matrices.push_back(head_matrices(in));
    group.inputs.push_back(std::move(in));
  }
  return group;
}

// Output and dq, one query row after the other.
void write_rows(const AttentionCase& test_case, const Group& group, Results& r) {
  const AttentionShape& s = test_case.shape;
  const DataType type = test_case.options.data_type;
  for (std::size_t member = 0; member < group.inputs.size(); ++member) {
    const HeadInputs& in = group.inputs[member];
    const HeadMatrices& m = group.matrices[member];
    for (std::int64_t i = 0; i < s.query_length; ++i) {
      const auto row = static_cast<std::size_t>((group.batch * s.query_heads + in.head) * s.query_length + i);
      const double* w = m.weights.data() + i * s.key_length;
      for (std::int64_t c = 0; c < s.value_dim; ++c) {
        const double sum =
            accumulate(type, s.key_length, [&](std::int64_t j) { return w[j] == 0.0 ? 0.0 : w[j] * in.v[j][c]; });
        r.output[row * static_cast<std::size_t>(s.value_dim) + static_cast<std::size_t>(c)] = round_to(type, sum);
      }
      for (std::size_t view = 0; view < in.q.size(); ++view) {
        double* dq = &r.dq[view][row * static_cast<std::size_t>(s.head_dim)];
        const double* g = m.g[view].data() + i * s.key_length;
        for (std::int64_t c = 0; c < s.head_dim; ++c) {
          dq[c] = accumulate(type, s.key_length,
                             [&](std::int64_t j) { return g[j] == 0.0 ? 0.0 : g[j] * in.k[view].rounded[j][c]; });
        }
        l2_norm_backward(type, in.q[view], i, test_case.options.normalize, dq);
      }
    }
  }
}

// dk and dv, one key after the other, summed over the group.
void write_columns(const AttentionCase& test_case, const Group& group, Results& r) {
  const AttentionShape& s = test_case.shape;
  const DataType type = test_case.options.data_type;
  const std::int64_t rows = static_cast<std::int64_t>(group.inputs.size()) * s.query_length;
  const auto member = [&](std::int64_t row) { return static_cast<std::size_t>(row / s.query_length); };
  for (std::int64_t j = 0; j < s.key_length; ++j) {
    const auto entry = [&](const std::vector<double>& matrix, std::int64_t row) {
      return matrix[static_cast<std::size_t>((row % s.query_length) * s.key_length + j)];
    };
    const auto key = static_cast<std::size_t>((group.batch * s.key_heads + group.key_head) * s.key_length + j);
    for (std::int64_t c = 0; c < s.value_dim; ++c) {
      const double sum = accumulate(type, rows, [&](std::int64_t row) {
        const double w = entry(group.matrices[member(row)].weights, row);
        return w == 0.0 ? 0.0 : w * group.inputs[member(row)].du[row % s.query_length][c];
      });
      r.dv[key * static_cast<std::size_t>(s.value_dim) + static_cast<std::size_t>(c)] = round_to(type, sum);
    }
    for (std::size_t view = 0; view < test_case.q.size(); ++view) {
      double* dk = &r.dk[view][key * static_cast<std::size_t>(s.head_dim)];
      for (std::int64_t c = 0; c < s.head_dim; ++c) {
        dk[c] = accumulate(type, rows, [&](std::int64_t row) {
          const double g = entry(group.matrices[member(row)].g[view], row);
          return g == 0.0 ? 0.0 : g * group.inputs[member(row)].q[view].rounded[row % s.query_length][c];
        });
      }
      l2_norm_backward(type, group.inputs[0].k[view], j, test_case.options.normalize, dk);
    }
  }
}

}  // namespace

NaiveResults run_naive(const AttentionCase& test_case) {
  const auto heads = static_cast<std::size_t>(test_case.shape.query_heads);
  NaiveResults naive;
  Results& r = naive.results;
  r.output.resize(static_cast<std::size_t>(test_case.d_output[0].numel()));
  r.dv.resize(static_cast<std::size_t>(test_case.v[0].numel()));
  for (auto* x : {&r.dbeta, &r.dlambda, &naive.dbeta_error, &naive.dlambda_error}) x->assign(heads, 0.0);
  for (std::size_t view = 0; view < test_case.q.size(); ++view) {
    r.dq[view].resize(static_cast<std::size_t>(test_case.q[view].numel()));
    r.dk[view].resize(static_cast<std::size_t>(test_case.k[view].numel()));
  }
  for (std::int64_t b = 0; b < test_case.shape.batch; ++b) {
    for (std::int64_t key_head = 0; key_head < test_case.shape.key_heads; ++key_head) {
      const Group group = load_group(test_case, b, key_head);
      write_rows(test_case, group, r);
      write_columns(test_case, group, r);
      for (std::size_t member = 0; member < group.inputs.size(); ++member) {
        const auto h = static_cast<std::size_t>(group.inputs[member].head);
        const HeadMatrices& m = group.matrices[member];
        r.dbeta[h] += m.dbeta;
        naive.dbeta_error[h] += m.dbeta_error;
        if (test_case.lambda[h] < 0.0 || test_case.lambda[h] > 1.0) continue;
        r.dlambda[h] += m.dlambda;
        naive.dlambda_error[h] += m.dlambda_error;
      }
    }
  }
  return naive;
}

}  // namespace tda::test
