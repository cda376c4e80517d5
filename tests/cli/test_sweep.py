"""`tda sweep`: every point of the grid once, whatever happens in between."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, look_at_page
from program import PROGRAM, assert_refused

GRID = ("--grid", "model.mechanism=softmax,tda", "--grid", "train.learning_rate=1e-3,0.01")
NAMES = [
    f"mechanism={mechanism},learning_rate={rate}" for mechanism in ("softmax", "tda") for rate in ("0.001", "0.01")
]


@pytest.fixture(scope="module")
def recipe(small_runs) -> Path:
    return small_runs.tda.parent / "tda.toml"


def table(output: Path) -> list[dict[str, str]]:
    with (output / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def untimed(run: Path) -> list[dict[str, Any]]:
    timing = ("seconds", "tokens_per_second", "model_flops_utilization")
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in timing} for line in lines]


def start(*arguments: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen([PROGRAM, *map(str, arguments)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 60
    while not condition() and process.poll() is None and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


@pytest.fixture(scope="module")
def swept(recipe, run_tda, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("sweep") / "rates"
    done = run_tda("sweep", recipe, *GRID, "--jobs", "2", "--output", output)
    assert done.stdout == f"{output / 'results.csv'}\n"
    return output


def test_every_point_once(swept, recipe, run_tda, tmp_path):
    rows = table(swept)
    assert [row["run"] for row in rows] == NAMES
    assert [(row["model.mechanism"], row["train.learning_rate"]) for row in rows] == [
        ("softmax", "0.001"), ("softmax", "0.01"), ("tda", "0.001"), ("tda", "0.01")
    ]  # fmt: skip
    for row in rows:
        last = untimed(swept / "runs" / row["run"])[-1]
        assert row["status"] == "finished"
        assert int(row["step"]) == last["step"] == 6
        assert float(row["val_loss"]) == last["val_loss"]
        assert float(row["train_loss"]) == last["train_loss"]
        assert 0 <= float(row["sparsity"]) <= 1
        assert int(row["parameters"]) > 0
    # The run is that of `tda train` with the same values.
    threads = ("--train.threads", "1")
    run_tda("train", recipe, "--output", tmp_path / "run", "--train.learning_rate", "0.001", *threads)
    alone, of_sweep = untimed(tmp_path / "run"), untimed(swept / "runs" / NAMES[2])
    assert [line.get("val_loss") for line in alone] == pytest.approx([line.get("val_loss") for line in of_sweep])


def test_page(swept):
    report = json.loads((swept / "analysis.json").read_text())
    assert [run["name"] for run in report["runs"]] == NAMES
    assert report["runs"][1]["grid"] == {"model.mechanism": "softmax", "train.learning_rate": "0.01"}
    assert report["grid"] == [
        {"key": "model.mechanism", "values": ["softmax", "tda"]},
        {"key": "train.learning_rate", "values": ["0.001", "0.01"]},
    ]


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium: apt-get install chromium shows the page itself")
def test_page_in_a_browser(swept):
    seen = look_at_page(swept / "report.html", 400)
    assert seen["ready"] == "true", "the script of the page did not reach its end"
    assert seen["width"] <= 400
    assert seen["outside"] == []
    assert seen["rows"] == 4
    assert seen["heatmaps"] == 4
    assert "Over the grid" in seen["text"]


def test_finished_runs_are_not_repeated(swept, recipe, run_tda):
    before = {path: path.stat().st_mtime_ns for path in swept.glob("runs/*/**/*")}
    # A larger grid keeps what is there.
    grown = [word.replace("softmax,tda", "softmax,tda,tra") for word in GRID]
    done = run_tda("sweep", recipe, *grown, "--output", swept)
    assert done.stderr.count("is finished already") == 4
    assert before.items() <= {path: path.stat().st_mtime_ns for path in swept.glob("runs/*/**/*")}.items()
    assert [row["status"] for row in table(swept)] == ["finished"] * 6


def test_a_finished_sweep_needs_no_data(recipe, run_tda, tmp_path):
    data = Path(re.findall(r'path = "(.*)"', recipe.read_text())[0])
    shutil.copytree(data, tmp_path / "data")
    arguments = ("sweep", recipe, "--grid", f"data.path={tmp_path / 'data'}", "--output", tmp_path / "sweep")
    run_tda(*arguments)
    shutil.rmtree(tmp_path / "data")
    assert "is finished already" in run_tda(*arguments).stderr


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_all_with_checkpoints(recipe, run_tda, tmp_path, number, code):
    output = tmp_path / "sweep"
    long_runs = ("--grid", "train.steps=400", "--grid", "checkpoint.every=0", "--grid", "validation.every=0")
    arguments = ("sweep", recipe, *GRID, *long_runs, "--jobs", "2", "--output", output)
    process = start(*arguments)
    wait_until(lambda: sum(file.stat().st_size > 600 for file in output.glob("runs/*/metrics.jsonl")) == 2, process)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    rows = table(output)
    assert sorted(row["status"] for row in rows) == ["stopped", "stopped", "waiting", "waiting"]
    for row in rows:
        run = output / "runs" / row["run"]
        if row["status"] == "waiting":
            assert not run.exists()
            continue
        (step,) = (run / "checkpoints").iterdir()
        assert step.name == f"step-{int(row['step']):06d}"
    run_tda(*arguments)
    assert [(row["status"], row["step"]) for row in table(output)] == [("finished", "400")] * 4
    logs = "".join(path.read_text() for path in (output / "logs").iterdir())
    assert logs.count("resuming from") == 2


def test_children_do_not_outlive_a_killed_parent(recipe, tmp_path):
    output = tmp_path / "sweep"
    arguments = ("sweep", recipe, "--grid", "train.steps=100000", "--grid", "checkpoint.every=0", "--output", output)
    process = start(*arguments)
    log = output / "runs" / "steps=100000,every=0" / "metrics.jsonl"
    wait_until(lambda: log.exists() and log.stat().st_size > 600, process)
    process.kill()
    process.wait()
    checkpoints = log.parent / "checkpoints"
    end = time.monotonic() + 60
    while not list(checkpoints.glob("step-*")) and time.monotonic() < end:
        time.sleep(0.05)
    assert list(checkpoints.glob("step-*")), "SIGTERM of the dying parent did not reach the run"


def test_a_run_that_fails_does_not_stop_the_others(recipe, tda, tmp_path):
    output = tmp_path / "sweep"
    grid = (
        "--grid",
        "train.learning_rate=1e30,1e-2",
        "--grid",
        "train.warmup_steps=0",
        "--grid",
        "train.weight_decay=0",
    )
    done = tda("sweep", recipe, *grid, "--output", output)
    assert done.returncode == 1
    errors = done.stderr.decode()
    assert "error: 1 of 2 runs failed" in errors
    assert "stopped before the update" in errors
    assert [row["status"] for row in table(output)] == ["failed", "finished"]


def test_bad_input_writes_nothing(recipe, tda, tmp_path):
    output = ("--output", tmp_path / "sweep")

    def refused(*grid: str, parts: tuple[str, ...]) -> None:
        words = [word for text in grid for word in ("--grid", text)]
        assert_refused(tda("sweep", recipe, *words, *output), *parts)

    refused("train.learning_rat=1", parts=("unknown key train.learning_rat", "train.learning_rate"))
    refused("train.steps=many", parts=('train.steps is "many"', "integer >= 1"))
    refused("train.steps", parts=('--grid is "train.steps"', "section.key=a,b", "HINT: "))
    refused("train.learning_rate=1e-3,0.001", parts=("train.learning_rate has the value 0.001 twice",))
    refused("train.steps=1", "train.steps=2", parts=("train.steps is given twice",))
    refused("model.heads=2,3", parts=("model.width is 32",))
    refused("sample.prompt=a b,a_b", parts=("two runs would have the name prompt=a_b",))
    assert_refused(tda("sweep", recipe, *output), "--grid is required")
    assert_refused(tda("sweep", tmp_path / "absent.toml", *GRID, *output), "absent.toml")
    assert_refused(tda("sweep", recipe, *GRID, *output, "--jobs", "0"), "--jobs")
    # The dataset of any point, before the first run begins.
    data = re.findall(r'path = "(.*)"', recipe.read_text())[0]
    refused(f"data.path={data},absent", parts=("dataset absent is no folder", "HINT: "))
    (tmp_path / "empty").mkdir()
    refused(f"data.path={tmp_path / 'empty'}", parts=("has no shard train_*.bin", "HINT: "))
    (tmp_path / "empty").rmdir()
    assert not (tmp_path / "sweep").exists()
    (tmp_path / "notes.txt").write_text("mine")
    assert_refused(tda("sweep", recipe, *GRID, "--output", tmp_path), "is no sweep: it holds notes.txt", "HINT: ")
    assert os.listdir(tmp_path) == ["notes.txt"]
