#include "tda/attention.h"

namespace tda {}
