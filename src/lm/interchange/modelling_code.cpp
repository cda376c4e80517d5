#include "lm/interchange/modelling_code.h"

#include "lm/embedded_file.h"

TDA_EMBED_FILE(configuration, TDA_MODELLING_FOLDER "/configuration_tda.py")
TDA_EMBED_FILE(attention, TDA_MODELLING_FOLDER "/attention_tda.py")
TDA_EMBED_FILE(mechanisms, TDA_MODELLING_FOLDER "/mechanisms_tda.py")
TDA_EMBED_FILE(modeling, TDA_MODELLING_FOLDER "/modeling_tda.py")

namespace tda {

std::array<ModellingFile, 4> modelling_code() {
  return {{{"configuration_tda.py", TDA_EMBEDDED(configuration)},
           {"attention_tda.py", TDA_EMBEDDED(attention)},
           {"mechanisms_tda.py", TDA_EMBEDDED(mechanisms)},
           {"modeling_tda.py", TDA_EMBEDDED(modeling)}}};
}

}  // namespace tda
