// The files of the report page, as they stood when the program was built.
#pragma once

#include <string_view>

namespace tda {

struct EmbeddedPage {
  std::string_view html;    // page/report.html, with the places {{style}}, {{data}}, {{plotly}} and {{script}}
  std::string_view style;   // page/report.css
  std::string_view script;  // page/report.js
  std::string_view plotly;  // plotly.min.js (MIT)
};

EmbeddedPage embedded_page();

}  // namespace tda
