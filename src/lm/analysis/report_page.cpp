#include "lm/analysis/report_page.h"

#include <fmt/format.h>

#include <nlohmann/json.hpp>
#include <stdexcept>
#include <string_view>
#include <system_error>
#include <utility>

#include "lm/analysis/embedded_page.h"
#include "lm/durable_file.h"
#include "lm/error.h"

namespace tda {
namespace {

// Everything up to `place` goes to `out`; returns what follows it.
std::string_view copy_until(std::string_view text, std::string_view place, std::string& out) {
  const std::size_t at = text.find(place);
  if (at == std::string_view::npos) {
    throw std::logic_error("page/report.html has no place for " + std::string(place));
  }
  out.append(text.substr(0, at));
  return text.substr(at + place.size());
}

}  // namespace

std::string json_for_script(const nlohmann::json& value) {
  const std::string plain = value.dump(-1, ' ', /*ensure_ascii=*/false, nlohmann::json::error_handler_t::replace);
  std::string escaped;
  escaped.reserve(plain.size());
  for (const char c : plain) {
    // '<' occurs in JSON inside strings only, where this escape is the same character.
    if (c == '<') {
      escaped += "\\u003c";
    } else {
      escaped += c;
    }
  }
  return escaped;
}

std::string render_report_page(const nlohmann::json& report) {
  const EmbeddedPage page = embedded_page();
  const std::string data = json_for_script(report);
  const std::pair<std::string_view, std::string_view> parts[] = {
      {"{{style}}", page.style}, {"{{data}}", data}, {"{{plotly}}", page.plotly}, {"{{script}}", page.script}};
  std::string html;
  html.reserve(page.html.size() + page.style.size() + page.script.size() + page.plotly.size() + data.size());
  // In the order of the page: what has been inserted is never searched for places.
  std::string_view rest = page.html;
  for (const auto& [place, content] : parts) {
    rest = copy_until(rest, place, html);
    html.append(content);
  }
  return html.append(rest);
}

void create_folder(const std::filesystem::path& folder) {
  std::error_code failure;
  std::filesystem::create_directories(folder, failure);
  if (failure) throw Error(fmt::format("cannot make the folder {}: {}", folder.string(), failure.message()));
}

void write_report(const std::filesystem::path& folder, const nlohmann::json& report) {
  create_folder(folder);
  const auto invalid_utf8 = nlohmann::json::error_handler_t::replace;
  replace_file(folder / "analysis.json", report.dump(-1, ' ', false, invalid_utf8) + "\n");
  replace_file(folder / "report.html", render_report_page(report));
}

}  // namespace tda
