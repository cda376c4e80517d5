#pragma once

#include <stdexcept>
#include <string>
#include <utility>

namespace tda {

/// Bad input: a file, an argument or a value that the user can correct. The message is one line that names the thing,
/// its value and what was expected; the hint, when there is one, says what to do. The program prints both and exits
/// with 2. Anything else (a defect, a lack of memory) is any other exception and exits with 1.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, std::string hint = {})
      : std::runtime_error(message), hint_(std::move(hint)) {}

  const std::string& hint() const noexcept { return hint_; }

 private:
  std::string hint_;
};

}  // namespace tda
