"""The program of the GPU benchmark: what it measures, writes and refuses. The device is played by the CPU."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from bench.gpu import __main__ as program
from bench.gpu import measuring
from bench.gpu.claims import Case, Claim
from bench.gpu.contenders import BACKWARD, FORWARD
from bench.gpu.goals import Goal
from bench.gpu.inputs import Shape
from bench.gpu.peak_memory import PeakMemory
from bench.gpu.result import read_result

ROOT = Path(__file__).resolve().parents[2]
SMALL = Shape(12, 16, 40)
PEERS = ("math", "cudnn")  # the second is not there on a CPU


class CpuStopwatch:
    def milliseconds(self, call, runs):
        call()
        return 1.0

    def relieve_host(self, call, milliseconds):
        return call, "stream"


def case(run: str = FORWARD, **options) -> Case:
    shape = options.pop("shape", SMALL)
    options = {"goal": Goal(2.0), "dtype": "float32", "peers": PEERS} | options
    return Case(options.pop("regime", "random"), shape, run, **options)


CLAIMS = {
    "forward": Claim("Forward", (case(), case(regime="trained", shape=Shape(12, 64, 40)))),
    "broken": Claim("Broken", (case(regime="planted-8", shape=Shape(12, 16, 30)), case(BACKWARD))),
    "memory": Claim("Memory", (case(quantity="memory", goal=Goal(1.0, at_most=True)),)),
}


@pytest.fixture
def cpu_device(monkeypatch):
    """A machine that calls its CPU a device."""
    facts = {"date": "2026-01-02", "device": "NVIDIA H200", "driver": "1", "cuda": "13.0", "torch": "2.11.0"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(program, "own_stream", contextlib.nullcontext)
    monkeypatch.setattr(program, "describe_machine", lambda: facts)
    monkeypatch.setattr(program, "matrix_rate", lambda plan: 678.0)
    monkeypatch.setattr(program, "copy_rate", lambda plan: 4000.0)
    monkeypatch.setattr(program, "CLAIMS", CLAIMS)
    monkeypatch.setattr(program, "Bench", lambda *a: measuring.Bench(*a, device="cpu", stopwatch=CpuStopwatch()))
    monkeypatch.setattr(measuring, "peak_memory", lambda function, tensors, run: PeakMemory(100, 0))
    monkeypatch.setenv("TDA_DATA", "/no/such/folder")


def test_claims_are_measured_printed_and_written(cpu_device, tmp_path, capsys):
    output = tmp_path / "result.json"
    assert program.main(["--claims", "forward,memory", "--quick", "--commit", "abc", "--output", str(output)]) == 0
    printed = capsys.readouterr().out
    assert "### forward: Forward" in printed
    assert "SDPA cuDNN: RuntimeError" in printed
    assert "1 rows skipped" in printed
    result = read_result(output)
    assert result["command"] == "scripts/gpu/bench.sh --claims forward,memory --quick"
    assert (result["what"], result["commit"]) == ("attention-forward-memory-quick", "abc")
    assert result["matrix_tflops"] == [678.0, 678.0]
    assert [row["ratio"] for claim in result["claims"] for row in claim["rows"]] == [1.0, None, 1.0]
    assert "median_ms" in result["claims"][0]["rows"][0]["results"]["math"]


def test_a_crash_stops_no_other_row_and_shows_in_the_exit_code(cpu_device, tmp_path, capsys):
    output = tmp_path / "result.json"
    assert program.main(["--quick", "--output", str(output)]) == 1
    assert "crashed: broken, planted-8, T = 30, forward" in capsys.readouterr().err
    ratios = [row["ratio"] for claim in json.loads(output.read_text())["claims"] for row in claim["rows"]]
    assert ratios == [1.0, None, None, 1.0, 1.0]


def test_cases_of_ones_own(cpu_device, tmp_path, capsys):
    output = tmp_path / "result.json"
    assert program.main(["--cases", "dense:float32:12:16:40", "--quick", "--output", str(output)]) == 0
    rows = read_result(output)["claims"][0]["rows"]
    assert [(row["operator"], row["run"]) for row in rows] == [
        (operator, run) for operator in ("tra", "tda") for run in (FORWARD, BACKWARD)
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--claims", "forward,sideways"], "got 'sideways'"),
        (["--cases", "random:bfloat16:48"], "got 'random:bfloat16:48'"),
        (["--cases", "odd:bfloat16:48:64:1"], "got 'odd:bfloat16:48:64:1'"),
        (["--trained", "/no/such/folder"], "no folder /no/such/folder"),
        (["--render", "/no/such/file"], "/no/such/file: No such file"),
        (["--into", "x"], "belongs to --render"),
    ],
)
def test_wrong_usage_is_one_line(arguments, message, capsys):
    assert program.main(arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_the_program_renders_into_a_page_and_draws(cpu_device, tmp_path, monkeypatch, capsys):
    lengths = tuple(case(run, shape=Shape(12, 16, n), peers=("cudnn",)) for run in (FORWARD, BACKWARD) for n in (8, 16))
    monkeypatch.setattr(program, "CLAIMS", {"length": Claim("Growth", lengths)})
    result, page = tmp_path / "r.json", tmp_path / "page.md"
    assert program.main(["--quick", "--output", str(result)]) == 0
    page.write_text("<!-- tables of: -->\n<!-- end of tables -->\n")
    command = [sys.executable, "-m", "bench.gpu", "--render", result, "--into", page]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "### length: Growth" in page.read_text()
    assert [entry.name for entry in (tmp_path / "images").iterdir()] == ["performance-length.svg"]
    capsys.readouterr()
    assert program.main(["--render", str(result)]) == 0
    tables = capsys.readouterr().out.strip()
    assert f"{tables}\n\n![Growth](images/performance-length.svg)" in page.read_text()
