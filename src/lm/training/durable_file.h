#pragma once

#include "lm/durable_file.h"  // for files that still include it by its first place
