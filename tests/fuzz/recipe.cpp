// A recipe is refused with an Error, or what a run keeps of it reads back as the same recipe.
#include "lm/training/recipe.h"

#include "file_in_memory.h"
#include "lm/error.h"
#include "lm/training/recipe_text.h"

namespace {

// The text that a run keeps. Throws Error where the recipe is refused.
std::string kept(const std::uint8_t* data, std::size_t size) {
  const tda::fuzz::FileInMemory file(data, size);
  tda::ResolvedRecipe recipe = tda::load_recipe(file.path());
  recipe.origins.clear();  // they name the file
  return tda::recipe_toml(recipe);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string text;
  try {
    text = kept(data, size);
  } catch (const tda::Error&) {
    return 0;
  }
  tda::fuzz::require(kept(reinterpret_cast<const std::uint8_t*>(text.data()), text.size()) == text);
  return 0;
}
