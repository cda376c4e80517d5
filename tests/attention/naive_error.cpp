#include "naive_error.h"

#include <algorithm>
#include <cmath>

#include "naive_attention.h"

namespace tda::test {
namespace {

// Elements of the output from which one draw is enough.
constexpr std::int64_t kSmall = 10000;

double largest_error(const std::vector<double>& naive, const std::vector<double>& reference) {
  double error = 0.0;
  for (std::size_t i = 0; i < reference.size(); ++i) {
    if (!std::isnan(reference[i])) error = std::max(error, std::fabs(naive[i] - reference[i]));
  }
  return error;
}

void scale(std::vector<TensorBuffer>& buffers, double factor) {
  for (TensorBuffer& buffer : buffers) {
    const auto& n = buffer.sizes();
    // Broadcast dimensions share storage: an element is scaled once.
    std::vector<double> values = buffer.values();
    std::size_t next = 0;
    for (std::int64_t b = 0; b < n[0]; ++b) {
      for (std::int64_t h = 0; h < n[1]; ++h) {
        for (std::int64_t t = 0; t < n[2]; ++t) {
          for (std::int64_t c = 0; c < n[3]; ++c) buffer.set(b, h, t, c, values[next++] * factor);
        }
      }
    }
  }
}

// Turns the elements of every row by `shift` places. Queries and keys turned alike have the scores they had, and
// other roundings of them, because their products are added in another order.
void turn(std::vector<TensorBuffer>& buffers, std::int64_t shift) {
  for (TensorBuffer& buffer : buffers) {
    const auto& n = buffer.sizes();
    const std::vector<double> values = buffer.values();
    std::size_t row = 0;
    for (std::int64_t b = 0; b < n[0]; ++b) {
      for (std::int64_t h = 0; h < n[1]; ++h) {
        for (std::int64_t t = 0; t < n[2]; ++t, row += static_cast<std::size_t>(n[3])) {
          for (std::int64_t c = 0; c < n[3]; ++c) {
            buffer.set(b, h, t, (c + shift) % n[3], values[row + static_cast<std::size_t>(c)]);
          }
        }
      }
    }
  }
}

// Adds one draw; results of the draw are `values` and `vectors` times those of the case for outputs and score
// gradients.
void add_draw(const AttentionCase& test_case, const Results& reference, double values, double vectors,
              NaiveError& error) {
  const NaiveResults naive = run_naive(test_case);
  const auto raise = [](double& largest, double candidate) { largest = std::max(largest, candidate); };
  raise(error.output, largest_error(naive.results.output, reference.output) / values);
  if (reference.dv.empty()) return;
  raise(error.dv, largest_error(naive.results.dv, reference.dv) / values);
  const double products = values * values;
  for (std::size_t view = 0; view < test_case.q.size(); ++view) {
    raise(error.dq[view], largest_error(naive.results.dq[view], reference.dq[view]) * vectors / products);
    raise(error.dk[view], largest_error(naive.results.dk[view], reference.dk[view]) * vectors / products);
  }
  // A parameter is one number per head; the heads of a case share one bound.
  raise(error.dbeta, *std::max_element(naive.dbeta_error.begin(), naive.dbeta_error.end()) / products);
  if (test_case.options.views == 2) {
    raise(error.dlambda, *std::max_element(naive.dlambda_error.begin(), naive.dlambda_error.end()) / products);
  }
}

}  // namespace

NaiveError measure_naive_error(const AttentionCase& test_case, const Results& reference) {
  NaiveError error;
  add_draw(test_case, reference, 1.0, 1.0, error);
  if (static_cast<std::int64_t>(reference.output.size()) >= kSmall) return error;
  // Rounding q and k anew may move a score across its threshold, where gradients below p = 2 jump, or change it
  // where nothing normalizes them: there their elements are turned instead.
  const bool move_scores = test_case.options.normalize && test_case.options.power >= 2.0;
  std::int64_t shift = 0;
  for (const double factor : {1.125, 1.25, 1.375, 1.5, 1.625, 1.75, 1.875}) {
    AttentionCase draw = test_case;
    shift += std::max<std::int64_t>(1, test_case.shape.head_dim / 8);
    scale(draw.v, factor);
    scale(draw.d_output, factor);
    if (move_scores) {
      scale(draw.q, factor);
      scale(draw.k, factor);
    } else {
      turn(draw.q, shift);
      turn(draw.k, shift);
    }
    const Results exact = run(draw.in_double(), Implementation::kReference, !reference.dv.empty());
    add_draw(draw, exact, factor, move_scores ? factor : 1.0, error);
  }
  return error;
}

}  // namespace tda::test
