"""`tda score` on bad input: one line on stderr, exit code 2, nothing half-written; and bytes of any kind are text."""

from __future__ import annotations

import json
import os
import resource
import shutil
from pathlib import Path

import numpy as np
import pytest
from program import Tda, assert_refused, sign_checkpoint
from safetensors.numpy import load_file, save_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(b"The king of number 7\r\n\xff\x00")
    return path


def test_text_that_cannot_be_scored(tda: Tda, small_runs, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    (tmp_path / "folder").mkdir()
    before = names(tmp_path)
    for name, expected in {
        "missing.txt": "No such file or directory",
        "empty.txt": "the file is empty, there is nothing to score",
        "folder": "Is a directory",
        "a" * 300: "File name too long",
    }.items():
        arguments = ("--input", tmp_path / name, "--output", tmp_path / "scores.jsonl")
        assert_refused(tda("score", small_runs.tda, *arguments), str(tmp_path / name), expected)
        assert names(tmp_path) == before


def test_wrong_usage(tda: Tda, small_runs, text: Path) -> None:
    before = names(text.parent)
    for arguments, expected in [
        ([], "--input is required"),
        (["--input", text, "--precision", "fp64"], 'precision is "fp64", expected "fp32" or "bf16"'),
        (["--input", text, "--outptu", "x"], "did you mean '--output'?"),
    ]:
        assert_refused(tda("score", small_runs.tda, *arguments, cwd=text.parent), expected)
        assert names(text.parent) == before
    assert_refused(tda("score", "--input", text), "CHECKPOINT is required")


def test_checkpoint_that_cannot_be_read(tda: Tda, small_runs, text: Path, tmp_path: Path) -> None:
    arguments = ("--input", text, "--output", tmp_path / "scores.jsonl")
    assert_refused(tda("score", tmp_path / "none", *arguments), f"checkpoint {tmp_path / 'none'} does not exist")
    assert_refused(tda("score", text, *arguments), "is a file")
    step = Path(shutil.copytree(small_runs.tda / "checkpoints" / "step-000006", tmp_path / "step-000006"))
    weights = step / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x7f")
    assert_refused(tda("score", step, *arguments), f"checkpoint {step} is damaged: model.safetensors has CRC-32")
    assert names(tmp_path) == ["step-000006", "text.txt"]


def test_output_that_cannot_be_written(tda: Tda, small_runs, text: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    before = names(tmp_path)
    for output in (tmp_path / "none" / "scores.jsonl", tmp_path / "folder", text / "scores.jsonl", ""):
        result = tda("score", small_runs.tda, "--input", text, "--output", output, cwd=tmp_path)
        assert_refused(result, f"cannot write {output}")
        assert names(tmp_path) == before


def test_output_is_tried_before_the_work(tda: Tda, text: Path, tmp_path: Path) -> None:
    """A checkpoint that is not there is the first thing that the work would meet."""
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("folder")
    before = names(tmp_path)
    for output in (tmp_path / "none" / "scores.jsonl", tmp_path / "folder", tmp_path / "link", text / "x", ""):
        result = tda("score", tmp_path / "nowhere", "--input", text, "--output", output, cwd=tmp_path)
        assert_refused(result, f"cannot write {output}: ")
        assert names(tmp_path) == before
    good = tda("score", tmp_path / "nowhere", "--input", text, "--output", tmp_path / "scores.jsonl")
    assert_refused(good, f"checkpoint {tmp_path / 'nowhere'} does not exist")
    assert names(tmp_path) == before


def test_full_disk(tda: Tda, small_runs, text: Path, tmp_path: Path) -> None:
    """A limit on file sizes stands for a full disk."""

    def set_limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))

    scores = tmp_path / "scores.jsonl"
    scores.write_text("old\n")
    result = tda("score", small_runs.tda, "--input", text, "--output", scores, preexec_fn=set_limit)
    assert_refused(result, "cannot write", "File too large")
    assert names(tmp_path) == ["scores.jsonl", "text.txt"]
    assert scores.read_text() == "old\n"


def test_the_text_is_never_overwritten(tda: Tda, small_runs, text: Path, tmp_path: Path) -> None:
    content = text.read_bytes()
    (tmp_path / "link").symlink_to(text)
    for output in (text, tmp_path / "link", tmp_path / "." / "text.txt"):
        result = tda("score", small_runs.tda, "--input", text, "--output", output)
        assert_refused(result, f"--output {output} is the input itself")
        assert text.read_bytes() == content


def test_a_pipe_or_a_link_is_written_where_it_stands(tda: Tda, small_runs, text: Path, tmp_path: Path) -> None:
    plain, link = tmp_path / "plain.jsonl", tmp_path / "link.jsonl"
    assert tda("score", small_runs.tda, "--input", text, "--output", plain).returncode == 0
    (tmp_path / "target.jsonl").write_text("old\n")
    link.symlink_to("target.jsonl")
    assert tda("score", small_runs.tda, "--input", text, "--output", link).returncode == 0
    assert link.is_symlink()
    assert (tmp_path / "target.jsonl").read_text() == plain.read_text()
    # A pipe of the test's own: with /dev/null, a failure of this test would harm the machine it runs on.
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        assert tda("score", small_runs.tda, "--input", text, "--output", pipe).returncode == 0
        assert pipe.is_fifo()
        assert os.read(reader, 1 << 16).decode() == plain.read_text()
    finally:
        os.close(reader)


def test_any_bytes_are_text(tda: Tda, small_runs, text: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores.jsonl"
    result = tda("score", small_runs.tda, "--input", text, "--output", scores)
    assert result.returncode == 0, result.stderr
    content = text.read_bytes()
    lines = [json.loads(line) for line in scores.read_text().splitlines()]
    assert bytes(line["token"] for line in lines) == content
    summary = json.loads(result.stdout)
    assert summary["tokens"] == summary["bytes"] == len(content)
    assert summary["loss"] == pytest.approx(-np.mean([line["logprob"] for line in lines]), rel=1e-6)


def test_loss_that_is_not_finite(tda: Tda, small_runs, text: Path, tmp_path: Path) -> None:
    """A model that diverged is no wrong usage: exit code 1, and no file with numbers that JSON does not know."""
    step = Path(shutil.copytree(small_runs.tda / "checkpoints" / "step-000006", tmp_path / "step-000006"))
    weights = dict(load_file(step / "model.safetensors"))
    weights["head.weight"].fill(np.nan)
    save_file(weights, step / "model.safetensors")
    sign_checkpoint(step)
    result = tda("score", step, "--input", text, "--output", tmp_path / "scores.jsonl")
    assert_refused(result, str(step), "the loss of the text is not finite", code=1)
    assert names(tmp_path) == ["step-000006", "text.txt"]
