"""The event files of a run, read by TensorBoard itself."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from program import assert_refused

pytest.importorskip("tensorboard", reason="TensorBoard's reader; pip install -r requirements.txt")

from tensorboard.backend.event_processing import event_accumulator, event_file_loader

TIMING = ("seconds", "tokens_per_second", "model_flops_utilization")
NUMBERS = ("tokens", "train_loss", "val_loss", "learning_rate", "gradient_norm", *TIMING)


def event_files(run: Path) -> list[Path]:
    return sorted(run.glob("events.out.tfevents.*"))


def scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """All tags of a run folder as TensorBoard shows them: (step, value)."""
    reader = event_accumulator.EventAccumulator(str(run), size_guidance={event_accumulator.SCALARS: 0})
    reader.Reload()
    return {tag: [(one.step, one.value) for one in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def single(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


def expected_scalars(run: Path) -> dict[str, list[tuple[int, float]]]:
    """The same from metrics.jsonl."""
    expected: dict[str, list[tuple[int, float]]] = {}

    def add(tag: str, line: dict[str, Any], value: float) -> None:
        expected.setdefault(tag, []).append((line["step"], single(value)))

    for text in (run / "metrics.jsonl").read_text().splitlines():
        line = json.loads(text)
        for key in NUMBERS:
            if key in line:
                add(key, line, line[key])
        for key in ("sparsity", "empty_rows"):
            layers = [sum(heads) / len(heads) for heads in line.get(key, [])]
            for layer, mean in enumerate(layers):
                add(f"{key}/layer_{layer}", line, mean)
            if layers:
                add(f"{key}/mean", line, sum(layers) / len(layers))
    return expected


def assert_equal_to_metrics(run: Path) -> None:
    found, expected = scalars(run), expected_scalars(run)
    assert found.keys() == expected.keys()
    for tag, values in expected.items():
        assert [step for step, _ in found[tag]] == [step for step, _ in values], tag
        assert [value for _, value in found[tag]] == pytest.approx([value for _, value in values], rel=1e-6), tag


def test_scalars_are_those_of_metrics(small_runs):
    for run in (small_runs.softmax, small_runs.tda):
        assert len(event_files(run)) == 1
        assert_equal_to_metrics(run)
        assert len(scalars(run)["train_loss"]) == 6


def test_no_step_twice_after_resuming(run_tda, small_runs, tmp_path):
    """Killed after its last checkpoint, twice: steps are done again, the second time within one second."""
    recipe = small_runs.tda / "recipe.toml"
    run = tmp_path / "run"
    run_tda("train", recipe, "--output", run, "--train.stop_after", "5", "--checkpoint.every", "2")
    for _ in range(2):
        newest = max((run / "checkpoints").iterdir())
        for path in newest.iterdir():
            path.unlink()
        newest.rmdir()
        run_tda("train", recipe, "--output", run, "--resume")
    files = event_files(run)
    assert len(files) == 3
    steps = [[event.step for event in event_file_loader.EventFileLoader(str(file)).Load()] for file in files]
    assert set(steps[0]) & set(steps[1]), "nothing was done again, so this test says nothing"
    assert_equal_to_metrics(run)
    done = run_tda("train", recipe, "--output", run, "--resume")
    assert "nothing to do" in done.stderr
    assert event_files(run) == files


@pytest.mark.parametrize("position", [3, 9, 14, 200, -2])
def test_checksums_guard_every_byte(small_runs, tmp_path, position):
    """Length, content and the checksum of each: TensorBoard stops at a record that is damaged."""

    def records(path: Path) -> int:
        return sum(1 for _ in event_file_loader.RawEventFileLoader(str(path)).Load())

    (file,) = event_files(small_runs.tda)
    content = bytearray(file.read_bytes())
    content[position] ^= 4
    damaged = tmp_path / "events.out.tfevents.damaged"
    damaged.write_bytes(content)
    assert records(file) == 2 + 7, "version, start, seven lines of metrics"
    assert records(damaged) < records(file)


def test_can_be_switched_off(run_tda, small_runs, tmp_path):
    recipe = small_runs.tda / "recipe.toml"
    run_tda("train", recipe, "--output", tmp_path / "run", "--log.tensorboard", "false")
    assert event_files(tmp_path / "run") == []
    assert (tmp_path / "run" / "metrics.jsonl").exists()


def test_bad_value_is_refused(tda, small_runs, tmp_path):
    refused = tda("train", small_runs.tda / "recipe.toml", "--output", tmp_path / "run", "--log.tensorboard", "yes")
    assert_refused(refused, 'log.tensorboard is "yes"', "true or false")
