// The makers of all mechanisms, one per file of this folder.
#pragma once

#include <memory>

#include "lm/model/attention_mechanism.h"

namespace tda {

std::unique_ptr<AttentionMechanism> make_softmax(const ModelConfig& config);
std::unique_ptr<AttentionMechanism> make_rela(const ModelConfig& config);
std::unique_ptr<AttentionMechanism> make_tra(const ModelConfig& config);
std::unique_ptr<AttentionMechanism> make_tda(const ModelConfig& config);

}  // namespace tda
