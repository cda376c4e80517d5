// The mechanisms of this folder, one per file: NAME.cpp defines make_NAME. This list is the order of
// docs/mechanisms.md.
#pragma once

#include <memory>

#include "lm/model/attention_mechanism.h"

#define TDA_ATTENTION_MECHANISMS(MECHANISM) \
  MECHANISM(softmax)                        \
  MECHANISM(gated_softmax)                  \
  MECHANISM(ssmax)                          \
  MECHANISM(entmax)                         \
  MECHANISM(lssar)                          \
  MECHANISM(rela)                           \
  MECHANISM(diff_softmax)                   \
  MECHANISM(dex)                            \
  MECHANISM(diff_rela)                      \
  MECHANISM(tra)                            \
  MECHANISM(tda)                            \
  MECHANISM(asentmax)                       \
  MECHANISM(softpick)

namespace tda {

#define TDA_DECLARE_MAKER(name) std::unique_ptr<AttentionMechanism> make_##name(const ModelConfig& config);
TDA_ATTENTION_MECHANISMS(TDA_DECLARE_MAKER)
#undef TDA_DECLARE_MAKER

}  // namespace tda
