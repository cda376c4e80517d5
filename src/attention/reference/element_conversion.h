// Reading and writing single elements of any DataType as double. Slow and plain: for the reference and for tests.
#pragma once

#include <cstddef>
#include <cstdint>

#include "tda/attention.h"

namespace tda {

// Bytes of one element.
std::size_t element_size(DataType type);

// The element at `index` (counted in elements) of the array at `data`, exactly.
double load_element(DataType type, const void* data, std::int64_t index);

// Stores `value` rounded to nearest even; values beyond the range of the type become infinite.
void store_element(DataType type, void* data, std::int64_t index, double value);

// `value` rounded to the data type and back.
double round_to(DataType type, double value);

}  // namespace tda
