"""bench/sweep_table.py: means over what is not shown, nothing of an unfinished sweep; the study is what it prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from program import REPOSITORY, assert_refused

SCRIPT = REPOSITORY / "bench" / "sweep_table.py"
STUDY = REPOSITORY / "bench" / "results" / "2026-11-22-xeon-power-and-beta.csv"
RESULTS = """run,status,train.seed,model.power,model.beta,val_loss
a,finished,1,1.0,0.5,2.0
b,finished,1,2.0,0.5,1.5
c,finished,2,1.0,0.5,3.0
d,finished,2,2.0,0.5,1.5
e,finished,1,1.0,0.8,4.25
"""


def print_table(results: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), str(results), "--rows", "model.power", "--columns", "model.beta", *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_means_and_ranges(tmp_path: Path) -> None:
    results = tmp_path / "results.csv"
    results.write_text(RESULTS)
    done = print_table(results, "--digits", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "| model.power | model.beta = 0.5 | model.beta = 0.8 |",
        "|---|---|---|",
        "| 1.0 | 2.50 (2.00 to 3.00) | 4.25 |",
        "| 2.0 | 1.50 (1.50 to 1.50) | - |",
    ]


def test_bad_input_is_refused(tmp_path: Path) -> None:
    results = tmp_path / "results.csv"
    assert_refused(print_table(results), "cannot read")
    results.write_text(RESULTS.splitlines()[0])
    assert_refused(print_table(results), "holds no run")
    results.write_text(RESULTS.replace("d,finished", "d,running"))
    assert_refused(print_table(results), "run d is running, expected finished")
    results.write_text(RESULTS)
    assert_refused(print_table(results, "--value", "loss"), "no column loss")


@pytest.mark.parametrize("value", ["val_loss", "sparsity", "empty_rows"])
def test_the_page_of_the_study_holds_what_is_printed(value: str) -> None:
    page = REPOSITORY / "docs" / "experiments" / "2026-11-22-power-and-beta.md"
    done = print_table(STUDY, "--value", value)
    assert done.returncode == 0, done.stderr
    assert done.stdout in page.read_text()
