// The team of a row (src/lm/model/cuda/row_team.cuh) as one thread: the same sums in the same order, so that the
// formulas that a GPU runs can be tested without one.
#pragma once

#include <array>
#include <limits>

#include "lm/model/cuda/row_arithmetic.h"

namespace tda::test {

class SerialTeam {
 public:
  explicit SerialTeam(int count) : count_(count) {}

  int count() const { return count_; }
  bool leads() const { return true; }

  template <typename F>
  void for_each(F&& f) const {
    for (int j = 0; j < count_; ++j) f(j);
  }

  template <typename F>
  auto sum(F&& f) const {
    using Value = decltype(f(0));
    return reduced(Value{}, f, [](Value a, Value b) { return a + b; });
  }

  template <typename F>
  float greatest(F&& f) const {
    return reduced(-std::numeric_limits<float>::infinity(), f, [](float a, float b) { return greater(a, b); });
  }

 private:
  template <typename Value, typename F, typename Combine>
  Value reduced(Value neutral, F& f, Combine combine) const {
    std::array<std::array<Value, kSumParts>, kLanes> parts;
    for (auto& lane : parts) lane.fill(neutral);
    for (int j = 0; j < count_; ++j) {
      Value& part = parts[j % kLanes][j / kLanes % kSumParts];
      part = combine(part, f(j));
    }
    std::array<Value, kLanes> lanes;
    for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = tree_of_parts(parts[lane].data(), combine);
    for (int step = kLanes / 2; step > 0; step /= 2) {
      const auto before = lanes;
      for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = combine(before[lane], before[lane ^ step]);
    }
    return lanes[0];
  }

  int count_;
};

}  // namespace tda::test
