"""report.html: one file that needs nothing else, holds hostile text as data, and fits a screen and a phone."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from browser import CHROMIUM, look_at_page

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=f()><!--"


class Page(HTMLParser):
    """Collects elements, their attributes and the content of scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[dict[str, str | None], str]] = []
        self.open_script: dict[str, str | None] | None = None

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.open_script = dict(attrs) if tag == "script" else None

    def handle_data(self, data: str) -> None:
        if self.open_script is not None:
            self.scripts.append((self.open_script, data))
            self.open_script = None


@pytest.fixture(scope="module")
def page_file(small_runs, run_tda, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("report")
    run_tda(
        *(
            "analyze",
            small_runs.softmax,
            small_runs.tda,
            "--text",
            small_runs.text,
            "--output",
            output,
        ),
        *("--windows", "2", "--prompt", HOSTILE[:50], "--sentence", HOSTILE),
    )
    return output / "report.html"


@pytest.fixture(scope="module")
def page(page_file) -> Page:
    parser = Page()
    parser.feed(page_file.read_text())
    return parser


def test_loads_nothing(page, page_file):
    assert {tag for tag, _ in page.elements}.isdisjoint({"link", "img", "iframe", "object", "embed", "base"})
    for tag, attributes in page.elements:
        assert "src" not in attributes, f"{tag} loads {attributes['src']}"
        assert "href" not in attributes, f"{tag} points to {attributes['href']}"
    policies = [a["content"] for t, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]
    assert policies
    assert "default-src 'none'" in policies[0]
    assert "http" not in re.sub(r"default-src[^\"]*", "", policies[0])
    style = re.search(r"<style>(.*?)</style>", page_file.read_text(), re.DOTALL)
    assert style
    assert "url(" not in style.group(1)
    assert "@import" not in style.group(1)


def test_scripts_are_data_plotly_and_drawing(page):
    kinds = [attributes.get("type") for attributes, _ in page.scripts]
    assert kinds == ["application/json", None, None], "hostile text opened a script of its own"
    assert "plotly.js v" in page.scripts[1][1][:200]


def test_data_is_that_of_analysis_json(page, page_file):
    report = json.loads(page.scripts[0][1])
    assert report == json.loads((page_file.parent / "analysis.json").read_text())
    assert report["runs"][0]["sample"]["prompt"] == HOSTILE[:50]
    assert "".join(report["runs"][0]["sentence"]["tokens"]) == HOSTILE


@pytest.mark.skipif(
    CHROMIUM is None,
    reason="no chromium: apt-get install chromium shows the page itself",
)
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser(page_file, width):
    seen = look_at_page(page_file, width)
    assert seen["ready"] == "true", "the script of the page did not reach its end"
    assert seen["width"] <= width, f"the page is {seen['width']} pixels wide and scrolls sideways"
    assert seen["outside"] == []
    assert seen["plots"] >= 9
    assert seen["heatmaps"] == 3
    assert seen["lines"] >= 12
    assert seen["rows"] == 3
    assert seen["images"] == 0
    assert seen["samples"] == [HOSTILE[:50]] * 2
    assert seen["tokens"] == HOSTILE
