#include "lm/training/line_log.h"

#include <nlohmann/json.hpp>

namespace tda {

void LineLog::append(const nlohmann::ordered_json& line) {
  // Bytes of a model that are not UTF-8 become U+FFFD; JSON has no other way to hold them.
  file_.append(line.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n");
}

}  // namespace tda
