#pragma once

#include <cstdlib>
#include <filesystem>

namespace tda {

/// The folder of large real data: TDA_DATA, else ../shared/data beside the repository. It may be absent.
inline std::filesystem::path real_data() {
  const char* variable = std::getenv("TDA_DATA");
  if (variable != nullptr && *variable != '\0') return variable;
  return std::filesystem::path(TDA_SOURCE_DIR) / "../shared/data";
}

}  // namespace tda
