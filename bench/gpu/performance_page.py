"""Puts the tables of result files into a page, between two marks that name the files."""

from __future__ import annotations

import re
from pathlib import Path

from bench.gpu.plots import measured_rows, plot_name
from bench.gpu.result import read_result
from bench.gpu.tables import Record, best_rate, claim_table, heading

BEGIN = re.compile(r"<!-- tables of:(?P<files>[^>]*)-->\n")
IMAGES = "images"  # beside the page
END = "<!-- end of tables -->"


def rendered(results: list[Record], images: str | None = None) -> str:
    """The tables of all results; of a claim that several have, the last one's.

    ``images``: where a page finds the plots, which then stand below their tables.
    """
    last = {claim["name"]: n for n, result in enumerate(results) for claim in result["claims"]}
    parts = []
    for n, result in enumerate(results):
        claims = [claim for claim in result["claims"] if last[claim["name"]] == n]
        if claims:
            parts.append(heading(result))
        for claim in claims:
            parts.append(claim_table(claim, best_rate(result)))
            if images is not None and measured_rows(claim):
                parts.append(f"![{claim['title']}]({images}/{plot_name(claim)})")
    return "\n\n".join(parts)


def files_of(page: str) -> list[str]:
    """The result files that the page's tables say they come from.

    Raises:
        ValueError: the page has no such marks.
    """
    found = BEGIN.search(page)
    if found is None or END not in page[found.end() :]:
        raise ValueError(f"expected a line '<!-- tables of: FILE ... -->' and below it a line '{END}'")
    return found["files"].split()


def with_tables(page: str, files: list[str], tables: str) -> str:
    """The page with other tables between its marks."""
    files_of(page)
    found = BEGIN.search(page)
    end = page.index(END, found.end())
    return f"{page[: found.start()]}<!-- tables of: {' '.join(files)} -->\n\n{tables}\n\n{page[end:]}"


def tables_of(page: str, root: Path) -> str:
    """The part of a page between its marks as the files that it names would give it."""
    return rendered([read_result(root / name) for name in files_of(page)], IMAGES)
