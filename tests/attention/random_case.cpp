#include "random_case.h"

#include <algorithm>
#include <cmath>

#include "attention/reference/element_conversion.h"
#include "attention/reference/reference_attention.h"
#include "rounding_rule.h"

namespace tda::test {
namespace {

// Work of one case, in pairs times dimension and heads: keeps a thousand cases within a minute.
constexpr std::int64_t kLargestWork = 1'500'000;

class Dice {
 public:
  explicit Dice(std::mt19937_64& random) : random_(random) {}
  double uniform(double low, double high) { return std::uniform_real_distribution<double>(low, high)(random_); }
  std::int64_t integer(std::int64_t low, std::int64_t high) {
    return std::uniform_int_distribution<std::int64_t>(low, high)(random_);
  }
  bool chance(double probability) { return uniform(0.0, 1.0) < probability; }
  template <typename T>
  T pick(std::initializer_list<T> choices) {
    return choices.begin()[integer(0, static_cast<std::int64_t>(choices.size()) - 1)];
  }

 private:
  std::mt19937_64& random_;
};

AttentionShape draw_shape(Dice& dice) {
  AttentionShape s;
  do {
    s.batch = dice.pick<std::int64_t>({1, 1, 2, 3});
    s.key_heads = dice.pick<std::int64_t>({1, 1, 2, 3});
    s.query_heads = s.key_heads * dice.pick<std::int64_t>({1, 1, 1, 2, 4});
    // Tiles are powers of two, so lengths cluster around those.
    s.key_length = dice.chance(0.7) ? dice.pick<std::int64_t>({1, 2, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129})
                                    : dice.integer(1, 200);
    s.query_length = dice.chance(0.6) ? s.key_length : dice.integer(1, s.key_length);
    s.head_dim = dice.chance(0.7) ? dice.pick<std::int64_t>({16, 32, 64, 64, 64, 128})
                                  : dice.pick<std::int64_t>({1, 2, 3, 8, 15, 24, 40, 65, 80, 96, 192, 256});
    s.value_dim = s.head_dim * dice.pick<std::int64_t>({1, 1, 2});
  } while (s.batch * s.query_heads * s.query_length * s.key_length * s.head_dim > kLargestWork);
  return s;
}

AttentionOptions draw_options(Dice& dice) {
  AttentionOptions o;
  o.data_type = dice.pick({DataType::kFloat32, DataType::kBFloat16, DataType::kFloat16, DataType::kFloat64});
  o.views = static_cast<int>(dice.integer(1, 2));
  o.power = dice.chance(0.9) ? dice.pick({1.0, 1.5, 2.0, 2.0, 3.0}) : dice.uniform(1.0, 4.0);
  o.kappa = dice.pick({1.0, 1.0, 0.5, 3.0, 20.0});
  o.normalize = dice.chance(0.8);
  o.threads = static_cast<int>(dice.integer(0, 3));
  return o;
}

Layouts draw_layouts(Dice& dice) {
  const auto input = [&] {
    return dice.pick({Layout::kContiguous, Layout::kContiguous, Layout::kTransposed, Layout::kTransposed,
                      Layout::kPaddedRows, Layout::kBroadcastBatch, Layout::kBroadcastHeads, Layout::kReversedRows});
  };
  return {input(), input(), input(), dice.pick({Layout::kContiguous, Layout::kTransposed, Layout::kPaddedRows})};
}

void scale_row(TensorBuffer& buffer, std::int64_t b, std::int64_t h, std::int64_t t, double factor) {
  for (std::int64_t c = 0; c < buffer.sizes()[3]; ++c) buffer.set(b, h, t, c, buffer.get(b, h, t, c) * factor);
}

// Makes keys point along the queries of their own position, so that thresholds are passed.
void follow_queries(AttentionCase& test_case, std::size_t view, double noise, Dice& dice) {
  const AttentionShape& s = test_case.shape;
  const std::int64_t group = s.query_heads / s.key_heads;
  for (std::int64_t b = 0; b < s.batch; ++b) {
    for (std::int64_t h = 0; h < s.key_heads; ++h) {
      for (std::int64_t j = 0; j < s.key_length; ++j) {
        const std::int64_t i = dice.integer(0, s.query_length - 1);
        for (std::int64_t c = 0; c < s.head_dim; ++c) {
          const double q = test_case.q[view].get(b, h * group, i, c);
          test_case.k[view].set(b, h, j, c, q + noise * dice.uniform(-1.0, 1.0));
        }
      }
    }
  }
}

void decorate_rows(std::vector<TensorBuffer>& buffers, bool zeros, bool scales, Dice& dice) {
  for (TensorBuffer& buffer : buffers) {
    for (std::int64_t b = 0; b < buffer.sizes()[0]; ++b) {
      for (std::int64_t h = 0; h < buffer.sizes()[1]; ++h) {
        for (std::int64_t t = 0; t < buffer.sizes()[2]; ++t) {
          if (scales && dice.chance(0.3)) scale_row(buffer, b, h, t, dice.pick({0.1, 10.0}));
          if (zeros && dice.chance(0.1)) scale_row(buffer, b, h, t, 0.0);
        }
      }
    }
  }
}

}  // namespace

AttentionCase random_case(std::uint64_t seed) {
  std::mt19937_64 random(seed);
  Dice dice(random);
  const AttentionShape shape = draw_shape(dice);
  const AttentionOptions options = draw_options(dice);
  AttentionCase test_case(shape, options, draw_layouts(dice), random);
  const double beta = dice.pick({1.0, 1.0, 0.8, 0.5, 0.25, 0.0, -0.3});
  for (double& b : test_case.beta)
    b = round_to(DataType::kFloat32, dice.chance(0.5) ? beta : beta * dice.uniform(0, 1.5));
  for (double& l : test_case.lambda) {
    l = round_to(DataType::kFloat32, dice.chance(0.6) ? dice.uniform(0.0, 1.0) : dice.pick({0.0, 1.0, -0.3, 1.4}));
  }
  for (std::size_t view = 0; view < test_case.q.size(); ++view) {
    if (dice.chance(0.5)) follow_queries(test_case, view, dice.uniform(0.2, 2.0), dice);
  }
  // Without normalization a score has the size of |q||k|: keep it near that of unit vectors.
  const double scale = options.normalize ? 1.0 : 1.0 / std::sqrt(static_cast<double>(shape.head_dim));
  for (auto* buffers : {&test_case.q, &test_case.k}) {
    for (TensorBuffer& buffer : *buffers) {
      if (options.normalize) continue;
      TensorBuffer scaled(options.data_type, buffer.sizes(), Layout::kPaddedRows);
      for (std::int64_t b = 0; b < buffer.sizes()[0]; ++b) {
        for (std::int64_t h = 0; h < buffer.sizes()[1]; ++h) {
          for (std::int64_t t = 0; t < buffer.sizes()[2]; ++t) {
            for (std::int64_t c = 0; c < shape.head_dim; ++c) scaled.set(b, h, t, c, buffer.get(b, h, t, c) * scale);
          }
        }
      }
      buffer = scaled;
    }
  }
  // The gradient of a zero vector that survives (tau < 0) is divided by 1e-12 and would drown the rest of its tensor.
  const bool nonnegative = std::all_of(test_case.beta.begin(), test_case.beta.end(), [](double b) { return b >= 0.0; });
  const bool zeros = nonnegative && dice.chance(0.3), scales = options.normalize && dice.chance(0.3);
  decorate_rows(test_case.q, zeros, scales, dice);
  decorate_rows(test_case.k, zeros, scales, dice);
  return test_case;
}

bool keep_scores_off_thresholds(AttentionCase& test_case, std::mt19937_64& random) {
  constexpr int kAttempts = 200;
  Dice dice(random);
  std::normal_distribution<double> normal;
  const AttentionShape& s = test_case.shape;
  const double band = survival_band(test_case.options.data_type, s.head_dim);
  for (std::size_t view = 0; view < test_case.q.size(); ++view) {
    for (int attempt = 0;; ++attempt) {
      bool redrawn = false;
      const AttentionCase wide = test_case.in_double();
      const CaseInputs inputs(wide);
      for (std::int64_t b = 0; b < s.batch; ++b) {
        for (std::int64_t h = 0; h < s.query_heads; ++h) {
          const auto scores = reference_scores(s, wide.options, inputs.get(), static_cast<int>(view), b, h);
          for (std::int64_t i = 0; i < s.query_length; ++i) {
            const double tau = threshold(test_case, h, i);
            const double* row = scores.data() + i * s.key_length;
            // A zero vector scores exactly 0 in every arithmetic, so a threshold of 0 decides alike everywhere.
            const bool inside = std::any_of(row, row + s.key_length, [&](double score) {
              return std::fabs(score - tau) < band && !(score == 0.0 && tau == 0.0);
            });
            if (!inside) continue;
            redrawn = true;
            const double size = test_case.options.normalize ? 1.0 : 1.0 / std::sqrt(static_cast<double>(s.head_dim));
            for (std::int64_t c = 0; c < s.head_dim; ++c) test_case.q[view].set(b, h, i, c, size * normal(random));
          }
        }
      }
      if (!redrawn) break;
      if (attempt == kAttempts) return false;
    }
  }
  return true;
}

}  // namespace tda::test
