"""Small trained runs that the tests of the command line share."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from program import Tda, text_of

RunTda = Callable[..., "subprocess.CompletedProcess[str]"]

RECIPE = """
[model]
mechanism = "{mechanism}"
layers = 2
heads = 2
width = 32
context = 64
vocabulary = 320
beta = 0.4

[data]
path = "{data}"

[train]
steps = 6
tokens_per_step = 256
micro_batch = 2
learning_rate = 1e-2
minimum_learning_rate = 1e-3
warmup_steps = 2
precision = "fp32"
device = "cpu"

[validation]
every = 3
batches = 1

[checkpoint]
every = 3
keep = 2
"""


@pytest.fixture(scope="session")
def run_tda(tda: Tda) -> RunTda:
    """Runs the program for its text; fails unless it exits with `code`."""

    def run(*arguments: str | Path, code: int = 0) -> subprocess.CompletedProcess[str]:
        done = tda(*arguments)
        # Not text=True, which would turn a carriage return that a model wrote into a newline.
        out, err = text_of(done.stdout), text_of(done.stderr)
        assert done.returncode == code, f"{done.args} exited with {done.returncode}\n{out}\n{err}"
        return subprocess.CompletedProcess(done.args, done.returncode, out, err)

    return run


@dataclass(frozen=True)
class SmallRuns:
    softmax: Path
    tda: Path
    text: Path  # held out


@pytest.fixture(scope="session")
def small_runs(tmp_path_factory: pytest.TempPathFactory, run_tda: RunTda) -> SmallRuns:
    """A softmax and a TDA model of two layers, six steps old."""
    folder = tmp_path_factory.mktemp("small_runs")
    lines = [f"The {word} of number {n} went up to the hill.\n" for n in range(80) for word in ("king", "fox", "ship")]
    (folder / "train.txt").write_text("".join(lines[:-30]))
    text = folder / "held-out.txt"
    text.write_text("".join(lines[-30:]))
    data = folder / "data"
    run_tda(
        *("data", "prepare", "--tokenizer", "byte", "--output", data),
        *("--input", folder / "train.txt", "--validation", text),
    )
    for mechanism in ("softmax", "tda"):
        recipe = folder / f"{mechanism}.toml"
        recipe.write_text(RECIPE.format(mechanism=mechanism, data=data))
        run_tda("train", recipe, "--output", folder / mechanism)
    return SmallRuns(folder / "softmax", folder / "tda", text)
