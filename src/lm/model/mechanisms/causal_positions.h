// Which keys the row of a query sees: queries are the last T_q of T_k positions, row i sees keys 0 .. T_k - T_q + i.
#pragma once

#include <ATen/core/Tensor.h>

namespace tda {

// n_i, the number of keys that each row sees, (T_q) fp32 on the device of q (fp64 for an fp64 q). Every length term of
// a mechanism is a function of n_i and never of T: the rows of a text do not change when the text grows. q: (B, H, T_q,
// D), k: (B, H, T_k, D).
at::Tensor visible_keys(const at::Tensor& q, const at::Tensor& k);

// bool (T_q, T_k), true where the key lies behind the query.
at::Tensor future_keys(std::int64_t queries, std::int64_t keys, at::Device device);

}  // namespace tda
