#include "lm/training/launch_environment.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdlib>

#include "lm/error.h"

namespace tda {
namespace {

constexpr const char* kHint =
    "start many processes with `torchrun --standalone --nproc-per-node N --no-python tda train …`";
constexpr int kLargestWorld = 1 << 20;

std::string text_of(const char* name, const std::string& world_size) {
  const char* value = std::getenv(name);
  if (value == nullptr || *value == '\0') {
    throw Error(fmt::format("WORLD_SIZE is {}, but {} is not set", world_size, name), kHint);
  }
  return value;
}

int number(const char* name, const std::string& text, int minimum, int maximum) {
  int value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || value < minimum || value > maximum) {
    throw Error(fmt::format("{} is {}, expected an integer from {} to {}", name, text, minimum, maximum), kHint);
  }
  return value;
}

std::string optional_text(const char* name, std::string otherwise) {
  const char* value = std::getenv(name);
  return value == nullptr ? otherwise : value;
}

}  // namespace

LaunchEnvironment read_launch_environment() {
  LaunchEnvironment launch;
  const std::string world_size = optional_text("WORLD_SIZE", "1");
  launch.world_size = number("WORLD_SIZE", world_size, 1, kLargestWorld);
  if (launch.world_size == 1) return launch;
  launch.rank = number("RANK", text_of("RANK", world_size), 0, launch.world_size - 1);
  launch.local_rank = number("LOCAL_RANK", text_of("LOCAL_RANK", world_size), 0, launch.world_size - 1);
  launch.address = text_of("MASTER_ADDR", world_size);
  launch.port = static_cast<std::uint16_t>(number("MASTER_PORT", text_of("MASTER_PORT", world_size), 1, 65535));
  launch.launcher_serves = optional_text("TORCHELASTIC_USE_AGENT_STORE", "False") == "True";
  launch.attempt = optional_text("TORCHELASTIC_RESTART_COUNT", "0");
  return launch;
}

}  // namespace tda
