// How much arithmetic training does, and how much of what the machine can do that is.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

#include "lm/model/gpt.h"

namespace tda {

// Floating-point operations of one training token, forward and backward:
//   6·P + 3·L·(T + 1)·H·(views·D + D_v)
// P: parameters in matrix products of every token (projections, MLP, head; not the embedding, which is a look-up). The
// second term is QKᵀ of every view and one PV over the (T + 1) / 2 keys that a causal row sees on average. Multiplying
// by weights that are exactly zero counts as work here, whether or not the kernels do it.
double training_flops_per_token(const Gpt& model);

// Operations per second that a large matrix product reaches in this precision on this device and these threads: the
// measured stand-in for a data sheet's peak. Takes some tenths of a second.
double measure_peak_flops(Precision precision, at::Device device);

// "measured with a 1024 x 1024 x 1024 matrix product"
std::string peak_description(at::Device device);

}  // namespace tda
