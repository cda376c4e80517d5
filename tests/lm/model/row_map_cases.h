// The maps of rows that have a formula, over the range of their options, and the rule that holds a kernel against its
// twin.
#pragma once

#include <ATen/ATen.h>

#include <algorithm>
#include <ostream>
#include <string>
#include <vector>

#include "lm/model/mechanisms/entmax_rows.h"
#include "lm/model/mechanisms/lssar_rows.h"
#include "lm/model/mechanisms/softpick_rows.h"

namespace tda::test {

struct RowMapCase {
  std::string name;
  RowMapPointer map;
};

inline void PrintTo(const RowMapCase& c, std::ostream* out) { *out << c.name; }

inline std::vector<RowMapCase> row_map_cases() {
  return {{"entmax", make_entmax_rows(1.5)},         {"sparsemax", make_entmax_rows(2)},
          {"entmax_1_3", make_entmax_rows(1.3)},     {"entmax_1_25", make_entmax_rows(1.25)},
          {"entmax_1_1", make_entmax_rows(1.1)},     {"lssar", make_lssar_rows(15, 1)},
          {"lssar_2_5", make_lssar_rows(2.5, 0.5)},  {"lssar_linear", make_lssar_rows(1, 1)},
          {"lssar_dense", make_lssar_rows(15, 0)},   {"softpick", make_softpick_rows(1e-8)},
          {"softpick_plain", make_softpick_rows(0)}, {"softpick_large_eps", make_softpick_rows(0.5)}};
}

inline double largest_error(const at::Tensor& x, const at::Tensor& exact) {
  return (x.to(at::kCPU, at::kDouble) - exact).abs().max().item<double>();
}

// max|x - ref64| <= 2 max|twin - ref64| + floor, the floor being what fp32 loses of the reference beside 0.3.
inline double allowed_error(const at::Tensor& twin, const at::Tensor& exact) {
  const auto rounded = exact.to(at::kFloat);
  const double floor = 2 * ((rounded + 0.3f - 0.3f) - rounded).abs().max().item<double>();
  return 2 * largest_error(twin, exact) + floor;
}

}  // namespace tda::test
