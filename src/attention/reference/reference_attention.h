// The definition of the operator: forward and backward of TRA and TDA in double with plain loops.
//
// Everything else is tested against these functions. They take the structs of include/tda/attention.h, any data type
// (elements are converted when loaded and stored), any strides, and need neither a workspace nor a survivor index
// (outputs.survivor_index is left alone). Arguments are not validated. Cost: O(T_q T_k D) per head, one thread.
//
// NaN and Inf: a score is NaN when its query or its key holds a NaN or an Inf, whatever the other one holds. A NaN
// score counts as a survivor and flows into everything that the pair touches, output and gradients. A pair whose weight
// is 0 contributes nothing, whatever v or d_output hold.
#pragma once

#include <vector>

#include "tda/attention.h"

namespace tda {

// c_n = sqrt(2 max(0, ln((n + 1) / kappa)) / D) at the absolute position n; the threshold is tau_n = beta c_n.
double reference_threshold_scale(std::int64_t position, std::int64_t head_dim, double kappa);

// Scores s_ij of one view, batch and query head, row-major (query_length, key_length); pairs with j > n are -infinity.
std::vector<double> reference_scores(const AttentionShape& shape, const AttentionOptions& options,
                                     const AttentionInputs& inputs, int view, std::int64_t batch, std::int64_t head);

void reference_forward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                       const ForwardOutputs& outputs);

// Gradients of sum(output * d_output). Null data pointers skip a gradient.
void reference_backward(const AttentionShape& shape, const AttentionOptions& options, const AttentionInputs& inputs,
                        const ConstTensor& d_output, const BackwardOutputs& outputs);

}  // namespace tda
