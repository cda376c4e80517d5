#include "lm/analysis/output_folder.h"

#include <system_error>

#include "lm/analysis/report_page.h"
#include "lm/durable_file.h"

namespace tda {

namespace fs = std::filesystem;

OutputFolder::OutputFolder(const fs::path& path) : path_(fs::absolute(path).lexically_normal()), stays_(path_) {
  if (!path_.has_filename()) path_ = stays_ = path_.parent_path();  // given with a slash at its end
  std::error_code error;
  while (!fs::exists(stays_, error) && stays_.has_relative_path()) stays_ = stays_.parent_path();
  create_folder(path);
  require_writable(path / "analysis.json");
  require_writable(path / "report.html");
}

OutputFolder::~OutputFolder() {
  std::error_code error;  // a folder that is not empty stays
  for (fs::path made = path_; made != stays_ && fs::remove(made, error); made = made.parent_path()) {
  }
}

}  // namespace tda
