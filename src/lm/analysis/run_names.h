// Names by which a report tells its runs apart.
#pragma once

#include <string>
#include <vector>

namespace tda {

// Names that occur more than once get their place in the list behind them: tda, tda -> tda (1), tda (2).
std::vector<std::string> unique_names(std::vector<std::string> names);

}  // namespace tda
