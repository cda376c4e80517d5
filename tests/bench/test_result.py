"""What the GPU benchmark writes and prints: goals, tables, the result file, plots, the performance page."""

from __future__ import annotations

import copy
import json
import math
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

from bench.gpu.goals import Goal, shown
from bench.gpu.inputs import Shape
from bench.gpu.performance_page import BEGIN, END, rendered, tables_of, with_tables
from bench.gpu.plots import limit_ms, plots
from bench.gpu.result import check_result, crashed, read_result, write_result
from bench.gpu.svg_chart import Chart, Series
from bench.gpu.tables import claim_table, markdown, mebibytes, significant
from bench.gpu.timing import Timing

ROOT = Path(__file__).resolve().parents[2]


def timing(milliseconds: float) -> dict:
    return Timing((milliseconds, 0.99 * milliseconds, 1.01 * milliseconds), 10).to_json()


def speed_row(**changes) -> dict:
    row = {
        "case": "random",
        "regime": "random",
        "operator": "tra",
        "heads": 48,
        "dim": 64,
        "length": 16384,
        "dtype": "bfloat16",
        "run": "forward",
        "quantity": "time",
        "peers": ["cudnn", "flash"],
        "goal": {"at_least": 3.7},
        "quoted": None,
        "ratio": 3.0,
        "results": {"tra": timing(1.25), "cudnn": timing(3.75), "flash": {"unavailable": "RuntimeError: no kernel"}},
        "beta": 1.0,
        "density": 0.0002,
    }
    return row | changes


def memory_row(**changes) -> dict:
    results = {name: {"total_bytes": n << 21, "beyond_bytes": n << 20} for n, name in ((3, "tra"), (2, "cudnn"))}
    return speed_row(quantity="memory", goal={"at_most": 1.0}, ratio=1.5, peers=["cudnn"], results=results) | changes


def result_of(*claims: dict) -> dict:
    return {
        "what": "attention",
        "date": "2026-01-02",
        "device": "NVIDIA H200",
        "driver": "1.2",
        "cuda": "13.0",
        "cudnn": 1,
        "torch": "2.11.0",
        "commit": "abc",
        "command": "scripts/gpu/bench.sh",
        "seconds": 1.0,
        "matrix_tflops": [678.0, 670.0],
        "copy_gbps": 4000.0,
        "claims": list(claims),
    }


def claim_of(*rows: dict, name: str = "forward") -> dict:
    return {"name": name, "title": "A title", "seconds": 1.0, "rows": list(rows)}


def growth() -> dict:
    rows = [
        speed_row(length=1024 * n, run=run, results={"tra": timing(float(n * n)), "cudnn": timing(3.0 * n * n)})
        for run in ("forward", "backward")
        for n in (1, 2, 4)
    ]
    by_density = [speed_row(run=run, density=d) for run in ("forward", "backward") for d in (0.0, 0.001, 0.5)]
    return result_of(claim_of(*rows, name="length"), claim_of(*by_density, name="density"))


@pytest.mark.parametrize(
    ("goal", "ratio", "verdict"),
    [
        (Goal(3.0), 3.0, "met"),
        (Goal(3.0), 2.9999, "missed"),
        (Goal(0.65, at_most=True), 0.65, "met"),
        (Goal(0.65, at_most=True), 0.6501, "missed"),
        (Goal(1.0, at_most=True), math.inf, "missed"),
        (Goal(3.0), None, "-"),
        (Goal(3.0), math.nan, "-"),
    ],
)
def test_a_goal_is_met_or_missed(goal, ratio, verdict):
    assert goal.verdict(ratio) == verdict
    assert Goal.from_json(goal.to_json()) == goal


@pytest.mark.parametrize(
    ("ratio", "at_most", "text"),
    [
        (2.9999, False, "2.99"),
        (3.0, False, "3.00"),
        (1.15, False, "1.15"),
        (0.6501, True, "0.66"),
        (0.65, True, "0.65"),
        (None, False, "-"),
        (math.inf, True, "∞"),
        (1000.0, True, "1000.00"),
        (8938.34, True, "> 1000"),
        (8938.34, False, "8938.34"),
    ],
)
def test_no_row_looks_better_than_it_is(ratio, at_most, text):
    assert shown(ratio, at_most=at_most) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.12615, "0.1262"), (12.1914, "12.19"), (3.5, "3.500"), (123456.0, "123456")]
)
def test_significant_digits(value, text):
    assert significant(value) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0.0"), (1536, "0.0015"), (52428, "0.050"), (52429, "0.1"), (13 << 20, "13.0")]
)
def test_small_sizes_are_not_shown_as_nothing(size, text):
    assert mebibytes(size) == text


def cells(table: str) -> list[list[str]]:
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split(" |")] for line in lines]


def test_a_table_has_the_ratio_first_then_the_goal_and_whether_it_is_met():
    table = claim_table(claim_of(speed_row(), speed_row(ratio=3.8), speed_row(goal=None)), 678.0)
    header, *rows = cells(table)
    assert header[:4] == ["ratio", "goal", "verdict", "case"]
    assert [row[:3] for row in rows] == [["3.00", "≥ 3.7", "missed"], ["3.80", "≥ 3.7", "met"], ["3.00", "-", "-"]]
    assert "1 of 2 goals met." in table
    first = dict(zip(header, rows[0], strict=True))
    assert first["B·H, D, T"] == "48, 64, 16384"
    assert first["TRA ms"] == "1.250 ±1.0 %"
    assert first["SDPA flash (FA2) ms"] == "not available"
    assert first["over SDPA flash (FA2)"] == "-"
    assert first["live pairs"] == "0.02 %"
    flops = 2 * 64 * 48 * 16384 * 16385 / 2
    assert first["TFLOP/s"] == f"{flops / 1.25e-3 / 1e12:.0f}"
    assert first["limit ms"] == f"{flops / 678e12 * 1e3:.2f}"
    assert "RuntimeError: no kernel" in first["note"]


def test_tables_of_memory_and_of_rows_that_failed():
    table = claim_table(claim_of(memory_row(), memory_row(ratio="infinite")), 678.0)
    assert [row[:3] for row in cells(table)[1:]] == [["1.50", "≤ 1", "missed"], ["∞", "≤ 1", "missed"]]
    failed = claim_table(claim_of(speed_row(error="RuntimeError: lost", ratio=None, results={})), 678.0)
    assert "error: RuntimeError: lost" in failed
    assert "goals met" not in failed


def test_time_per_score_in_growth_claims():
    header, first, *_ = cells(claim_table(growth()["claims"][0], 678.0))
    pairs = 48 * 1024 * 1025 / 2
    assert first[header.index("ps a score")] == f"{1e9 / pairs:.1f}"


def test_all_lines_of_a_table_are_equally_wide_and_bars_are_escaped():
    lines = markdown([{"a": "1", "b": "x|y"}, {"a": "22", "note": "n"}]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert "x\\|y" in lines[2]
    assert lines[0].endswith("note |")


def test_result_files_are_written_whole_and_read_again(tmp_path):
    result = result_of(claim_of(speed_row(), memory_row(), speed_row(error="lost")))
    path = tmp_path / "new" / "result.json"
    write_result(result, path)
    assert read_result(path) == json.loads(json.dumps(result))
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]
    assert crashed(result) == ["forward, random, T = 16384, forward: lost"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda r: r.pop("commit"), "result.commit is missing"),
        (lambda r: r["claims"][0].pop("rows"), r"claims\[0\].rows is missing"),
        (lambda r: r["claims"][0]["rows"][1].update(heads="48"), r"claims\[0\].rows\[1\].heads: unexpected str"),
        (lambda r: r["claims"][0]["rows"][0]["results"]["tra"].pop("bursts_ms"), r"results.tra.bursts_ms is missing"),
        (lambda r: r["claims"][0]["rows"][1]["results"].update(tra=3), r"results.tra: expected an object, got int"),
    ],
)
def test_a_damaged_result_is_refused_by_the_name_of_the_field(damage, message):
    result = result_of(claim_of(speed_row(), memory_row()))
    check_result(result)
    damaged = copy.deepcopy(result)
    damage(damaged)
    with pytest.raises(ValueError, match=message):
        check_result(damaged)


def test_no_number_that_json_does_not_have_is_written(tmp_path):
    with pytest.raises(ValueError, match="JSON"):
        write_result(result_of(claim_of(speed_row(ratio=math.inf))), tmp_path / "result.json")


def test_plots_are_well_formed_and_hold_every_series():
    drawn = plots(growth())
    assert set(drawn) == {"performance-length.svg", "performance-density.svg"}
    for svg in drawn.values():
        root = ET.fromstring(svg)
        lines = root.findall("{http://www.w3.org/2000/svg}polyline")
        assert len(lines) == (5 if svg == drawn["performance-length.svg"] else 4)
        for line in lines:
            for point in line.attrib["points"].split():
                x, y = (float(number) for number in point.split(","))
                assert 0 <= x <= 800
                assert 0 <= y <= 440
        assert "limit: QKᵀ alone" in svg


def test_the_limit_is_the_causal_half_of_the_products():
    # 2 D operations for each of B·H T (T + 1) / 2 pairs; at 1 TFLOP/s.
    assert limit_ms(Shape(1, 64, 1000), 1.0) == pytest.approx(2 * 64 * 500_500 / 1e9)


def test_a_chart_without_points_is_refused():
    with pytest.raises(ValueError, match="'empty'"):
        Chart("empty", "x", "y", [Series("s", [])], []).svg()


def test_of_a_claim_measured_twice_the_last_counts():
    old, new = result_of(claim_of(speed_row())), result_of(claim_of(speed_row(ratio=9.0)))
    assert "9.00" in rendered([old, new])
    assert "3.00" not in rendered([old, new])


PAGE = f"before\n<!-- tables of: -->\nold\n{END}\nafter\n"


def test_tables_go_between_the_marks_of_a_page(tmp_path):
    write_result(growth(), tmp_path / "r.json")
    tables = rendered([read_result(tmp_path / "r.json")], "images")
    page = with_tables(PAGE, ["r.json"], tables)
    assert page.startswith("before\n<!-- tables of: r.json -->\n")
    assert page.endswith(f"{END}\nafter\n")
    assert "old" not in page
    assert "![A title](images/performance-length.svg)" in page
    assert tables_of(page, tmp_path) == tables
    assert with_tables(page, ["r.json"], tables) == page
    with pytest.raises(ValueError, match="end of tables"):
        with_tables("a page without marks", ["r.json"], tables)


def test_the_performance_page_shows_what_its_result_files_hold():
    page = (ROOT / "docs" / "performance.md").read_text()
    begin = BEGIN.search(page)
    assert begin is not None
    if begin["files"].strip():
        assert tables_of(page, ROOT) == page[begin.end() : page.index(END)].strip()
