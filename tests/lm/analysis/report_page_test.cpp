#include "lm/analysis/report_page.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>

#include "lm/analysis/embedded_page.h"

namespace tda {
namespace {

std::size_t occurrences(const std::string& text, const std::string& part) {
  std::size_t count = 0;
  for (std::size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + part.size())) ++count;
  return count;
}

std::string data_of(const std::string& page) {
  const std::string open = "<script type=\"application/json\" id=\"report-data\">";
  const std::size_t begin = page.find(open) + open.size();
  return page.substr(begin, page.find("</script>", begin) - begin);
}

TEST(ReportPage, EmbedsEveryPart) {
  const EmbeddedPage page = embedded_page();
  EXPECT_TRUE(page.html.starts_with("<!doctype html>"));
  EXPECT_TRUE(page.html.ends_with("</html>\n"));
  EXPECT_NE(page.plotly.find("plotly.js v"), std::string_view::npos);
  EXPECT_GT(page.plotly.size(), 1'000'000u);
  const std::string html = render_report_page({{"runs", nlohmann::json::array()}});
  for (const std::string_view part : {page.style, page.script, page.plotly}) {
    EXPECT_NE(html.find(part), std::string::npos);
  }
  for (const char* place : {"{{style}}", "{{data}}", "{{plotly}}", "{{script}}"}) {
    EXPECT_EQ(html.find(place), std::string::npos);
  }
}

// No part may end its own element early, or begin one of HTML's odd states inside a script.
TEST(ReportPage, EmbeddedPartsStayInsideTheirElements) {
  const EmbeddedPage page = embedded_page();
  for (const std::string_view part : {page.script, page.plotly}) {
    EXPECT_EQ(part.find("</script"), std::string_view::npos);
    EXPECT_EQ(part.find("<!--"), std::string_view::npos);
  }
  EXPECT_EQ(page.style.find("</"), std::string_view::npos);
}

TEST(ReportPage, HostileTextStaysData) {
  const std::string hostile = "</script><script>alert(1)</script><!-- {{plotly}} {{script}} \"\\ \xE2\x80\xA8";
  const nlohmann::json report = {{"runs", {{{"name", hostile}}}}};
  const std::string page = render_report_page(report);
  const std::string plain = render_report_page({{"runs", nlohmann::json::array()}});
  EXPECT_EQ(occurrences(page, "<script"), occurrences(plain, "<script"));
  EXPECT_EQ(occurrences(page, "</script"), occurrences(plain, "</script"));
  EXPECT_EQ(nlohmann::json::parse(data_of(page)), report);
}

TEST(ReportPage, BytesThatAreNoUtf8AreReplaced) {
  const std::string page = render_report_page({{"text", "a\xFFz"}});
  EXPECT_EQ(nlohmann::json::parse(data_of(page)).at("text"), "a\xEF\xBF\xBDz");
}

TEST(ReportPage, LoadsNothing) {
  const std::string html(embedded_page().html);
  EXPECT_NE(html.find("default-src 'none'"), std::string::npos);
  EXPECT_EQ(html.find("http"), html.find("http-equiv")) << "the page names a network address";
  EXPECT_EQ(html.find(" src="), std::string::npos);
  EXPECT_EQ(html.find("<link"), std::string::npos);
}

}  // namespace
}  // namespace tda
