#include "lm/training/resume_rules.h"

#include <fmt/format.h>

#include "lm/error.h"
#include "lm/training/recipe_text.h"

namespace tda {

std::vector<std::string> check_resumable(const Recipe& before, const Recipe& now, std::int64_t step) {
  std::vector<std::string> accepted;
  for (const RecipeChange& change : recipe_changes(before, now)) {
    const RecipeField& field = *change.field;
    const bool grows = field.on_resume == OnResume::kMayGrow && field.get(before) < field.get(now);
    if (field.on_resume == OnResume::kFree || grows) {
      accepted.push_back(
          fmt::format("{} changes from {} to {} at step {}", field.name(), change.before, change.after, step));
      continue;
    }
    throw Error(
        fmt::format("{} was {} when the run began and is {} now; it may {} on resuming", field.name(), change.before,
                    change.after, field.on_resume == OnResume::kMayGrow ? "only grow" : "not change"),
        "give it its old value, or train into another --output");
  }
  return accepted;
}

}  // namespace tda
