"""`tda report`: runs side by side from what training wrote, with and without a text."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, look_at_page
from program import assert_refused
from safetensors import safe_open


def read_report(output: Path) -> dict[str, Any]:
    assert sorted(path.name for path in output.iterdir()) == ["analysis.json", "report.html"]
    return json.loads((output / "analysis.json").read_text())


@pytest.fixture(scope="module")
def output(small_runs, run_tda, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "new" / "folder"
    run_tda("report", small_runs.softmax, small_runs.tda, "--output", folder)
    return folder


def test_everything_comes_from_the_run(output, small_runs):
    report = read_report(output)
    assert report["text"] is None
    for run, folder in zip(report["runs"], (small_runs.softmax, small_runs.tda), strict=True):
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        last = lines[-1]
        assert run["name"] == run["mechanism"] == folder.name
        assert (run["step"], run["training_tokens"], run["training_seconds"]) == (6, last["tokens"], last["seconds"])
        assert (run["train_loss"], run["val_loss"]) == (last["train_loss"], last["val_loss"])
        kept = ("step", "tokens", "train_loss", "val_loss")
        for row, line in zip(run["history"], lines, strict=True):
            assert {key: row[key] for key in kept if key in row} == {key: line[key] for key in kept if key in line}
        view = run["statistics"]["views"][0]
        assert view["sparsity"] == last["sparsity"]
        assert view["empty_rows"] == last["empty_rows"]
        assert view["mean"]["sparsity"] == pytest.approx(sum(map(sum, last["sparsity"])) / 4)
        with safe_open(folder / "checkpoints" / "step-000006" / "model.safetensors", "np") as weights:
            assert run["parameters"] == sum(weights.get_tensor(name).size for name in weights.keys())  # noqa: SIM118


def test_table(run_tda, small_runs, tmp_path):
    done = run_tda("report", small_runs.softmax, small_runs.tda, "--output", tmp_path / "page")
    header, *rows = done.stdout.splitlines()
    assert header.split("  ")[0].strip() == "model"
    for title in ("parameters", "step", "train loss", "val loss", "exact zeros", "empty rows", "seconds"):
        assert title in header
    assert rows[0].split()[0] == "softmax"
    assert " 0.0 % " in rows[0]
    assert rows[1].split()[0] == "tda"


def test_a_step_folder_ends_the_curves_there(run_tda, small_runs, tmp_path):
    step = small_runs.tda / "checkpoints" / "step-000003"
    run_tda("report", step, small_runs.tda, "--output", tmp_path / "page")
    first, second = read_report(tmp_path / "page")["runs"]
    assert [first["name"], second["name"]] == ["tda (1)", "tda (2)"]
    assert [row["step"] for row in first["history"]] == [0, 1, 2, 3]
    assert (first["step"], second["step"]) == (3, 6)


def test_a_run_that_is_still_young(run_tda, small_runs, tmp_path):
    """No checkpoint, an unfinished line, no validation: what is there is drawn."""
    run = tmp_path / "young"
    run.mkdir()
    shutil.copy(small_runs.tda / "recipe.toml", run)
    lines = (small_runs.tda / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(lines[1] + "\n" + lines[2] + "\n" + lines[3][:20])
    done = run_tda("report", run, "--output", tmp_path / "page")
    (report,) = read_report(tmp_path / "page")["runs"]
    assert report["parameters"] is report["statistics"] is report["val_loss"] is report["checkpoint"] is None
    assert report["step"] == 2
    assert done.stdout.splitlines()[1].split()[:2] == ["young", "-"]


def test_with_a_text_it_is_analyze(run_tda, small_runs, tmp_path):
    text = ("--text", small_runs.text)
    run_tda("report", small_runs.tda, *text, "--output", tmp_path / "report")
    run_tda("analyze", small_runs.tda, *text, "--output", tmp_path / "analyze")
    assert read_report(tmp_path / "report") == read_report(tmp_path / "analyze")


def test_bad_input_writes_nothing(tda, small_runs, tmp_path):
    output = ("--output", tmp_path / "page")
    assert_refused(tda("report", tmp_path / "absent", *output), "absent: no such run directory", "HINT: ")
    (tmp_path / "empty").mkdir()
    assert_refused(tda("report", tmp_path / "empty", *output), "holds no metrics.jsonl", "HINT: ")
    lone = tmp_path / "step-000006"
    shutil.copytree(small_runs.tda / "checkpoints" / "step-000006", lone)
    assert_refused(tda("report", lone, *output), "is no run directory", "tda analyze")
    broken = tmp_path / "broken"
    broken.mkdir()
    shutil.copy(small_runs.tda / "recipe.toml", broken)
    (broken / "metrics.jsonl").write_text('{"step": 1}\n')
    assert_refused(tda("report", small_runs.tda, broken, *output), "metrics.jsonl line 1", "HINT: ")
    (broken / "metrics.jsonl").write_text("")
    assert_refused(tda("report", broken, *output), "holds no step yet")
    assert_refused(tda("report", *output), "RUN is required")
    assert not (tmp_path / "page").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium shows the page itself")
@pytest.mark.parametrize("width", [1280, 400])
def test_in_a_browser(output, width):
    seen = look_at_page(output / "report.html", width)
    assert seen["ready"] == "true", "the script of the page did not reach its end"
    assert seen["width"] <= width
    assert seen["outside"] == []
    assert seen["rows"] == 2
    assert seen["heatmaps"] == 2, "one for each run, and no sentence"
    assert seen["plots"] >= 6
    assert seen["samples"] == []
    assert "bits per byte" not in seen["text"].lower()
    assert "validation loss" in seen["text"].lower()
