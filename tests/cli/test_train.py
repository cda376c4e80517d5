"""`tda train`: what a run leaves behind, that stopping leaves no trace in it, bad input refused in one line."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from program import PROGRAM, assert_refused, obey_permissions

TIMING_FIELDS = {"seconds", "tokens_per_second", "model_flops_utilization"}
STATE_FILES = ("model.safetensors", "optimizer.safetensors", "config.json", "tokenizer.json")

RECIPE = """
[model]
mechanism = "tda"
layers = 2
heads = 2
width = 16
context = 16
beta = 0.25

[data]
path = "{data}"

[train]
steps = 12
tokens_per_step = 128
micro_batch = 4
learning_rate = 1e-2
minimum_learning_rate = 1e-3
warmup_steps = 2
precision = "fp32"
threads = 1

[validation]
every = 3
batches = 1

[checkpoint]
every = 3
keep = 2

[sample]
every = 4
tokens = 8
prompt = "the"
"""


def tda(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("training")
    choice = random.Random(1).choice
    words = ["the", "quick", "brown", "fox", "jumps", "over", "a", "lazy", "dog"]
    for name, count in (("train", 4000), ("val", 400)):
        text = " ".join(choice(words) for _ in range(count))
        (folder / f"{name}.txt").write_text(text)
    inputs = ("--input", folder / "train.txt", "--validation", folder / "val.txt")
    prepared = tda("data", "prepare", "--tokenizer", "byte", *inputs, "--output", folder / "data")
    assert prepared.returncode == 0, prepared.stderr
    path = folder / "small.toml"
    path.write_text(RECIPE.format(data=folder / "data"))
    return path


@pytest.fixture(scope="module")
def whole_run(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that was never interrupted."""
    output = tmp_path_factory.mktemp("whole") / "run"
    result = tda("train", recipe, "--output", output)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(output / "checkpoints" / "step-000012")
    return output


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def untimed_metrics(run: Path) -> list[dict[str, Any]]:
    lines = read_lines(run / "metrics.jsonl")
    return [{key: value for key, value in line.items() if key not in TIMING_FIELDS} for line in lines]


def assert_same_run(run: Path, expected: Path, step: int = 12) -> None:
    for name in STATE_FILES:
        path = Path("checkpoints") / f"step-{step:06d}" / name
        assert (run / path).read_bytes() == (expected / path).read_bytes(), name
    assert untimed_metrics(run) == untimed_metrics(expected)
    assert read_lines(run / "samples.jsonl") == read_lines(expected / "samples.jsonl")


def start(*arguments: object) -> subprocess.Popen[bytes]:
    command = [str(PROGRAM), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    while not condition() and process.poll() is None:
        time.sleep(0.005)


def test_run_directory(whole_run: Path) -> None:
    assert sorted(path.name.split(".tfevents.")[0] for path in whole_run.iterdir()) == [
        "checkpoints", "events.out", "metrics.jsonl", "recipe.toml", "samples.jsonl"
    ]  # fmt: skip
    assert sorted(path.name for path in (whole_run / "checkpoints").iterdir()) == ["step-000009", "step-000012"]
    lines = read_lines(whole_run / "metrics.jsonl")
    assert [line["step"] for line in lines] == list(range(13))
    assert [line["tokens"] for line in lines] == [128 * step for step in range(13)]
    for line in lines[1:]:
        for key in ("train_loss", "learning_rate", "gradient_norm", *TIMING_FIELDS):
            assert isinstance(line[key], float), key
    assert [line["step"] for line in lines if "val_loss" in line] == [0, 3, 6, 9, 12]
    for line in lines[::3]:
        for key in ("sparsity", "empty_rows"):
            assert [len(heads) for heads in line[key]] == [2, 2]
            assert all(0 <= share <= 1 for heads in line[key] for share in heads)
    assert lines[-1]["val_loss"] < lines[0]["val_loss"] - 0.5
    assert [line["step"] for line in read_lines(whole_run / "samples.jsonl")] == [4, 8, 12]


def test_schedule_is_the_documented_one(whole_run: Path) -> None:
    rates = [line["learning_rate"] for line in read_lines(whole_run / "metrics.jsonl")[1:]]
    assert rates[0] == pytest.approx(5e-3, rel=1e-12)
    assert rates[1:3] == pytest.approx([1e-2, 1e-2], rel=1e-12)
    assert rates[7] == pytest.approx(5.5e-3, rel=1e-12)


def test_stop_and_resume_is_bit_exact(recipe: Path, whole_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    stopped = tda("train", recipe, "--output", output, "--train.stop_after", 5, "--resume")
    assert stopped.returncode == 0, stopped.stderr
    resumed = tda("train", recipe, "--output", output, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming from" in resumed.stderr
    assert_same_run(output, whole_run)
    again = tda("train", recipe, "--output", output, "--resume")
    assert again.returncode == 0
    assert "nothing to do" in again.stderr
    assert_same_run(output, whole_run)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_saves_and_resumes(recipe: Path, tmp_path: Path, number: int, code: int) -> None:
    long_run = ("--train.steps", 2000, "--checkpoint.every", 0, "--validation.every", 0, "--sample.every", 0)
    output = tmp_path / "run"
    process = start("train", recipe, "--output", output, *long_run)
    metrics = output / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 3, process)
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    last = read_lines(metrics)[-1]["step"]
    assert 3 <= last < 2000
    assert [path.name for path in (output / "checkpoints").iterdir()] == [f"step-{last:06d}"]
    end = ("--train.stop_after", last + 2)
    assert tda("train", recipe, "--output", output, *long_run, *end, "--resume").returncode == 0
    whole = tmp_path / "whole"
    assert tda("train", recipe, "--output", whole, *long_run, *end).returncode == 0
    assert_same_run(output, whole, last + 2)


def test_kill_at_any_moment_loses_no_bit(recipe: Path, tmp_path: Path) -> None:
    """With a checkpoint after every step nearly all kills hit a writer; leftovers must neither stay nor be trusted."""
    options = ("--train.steps", 40, "--checkpoint.every", 1, "--sample.every", 0)
    whole, output = tmp_path / "whole", tmp_path / "run"
    assert tda("train", recipe, "--output", whole, *options).returncode == 0
    moments = random.Random(7)
    checkpoints = output / "checkpoints"

    def listing() -> set[Path]:
        return set(checkpoints.iterdir()) if checkpoints.exists() else set()

    kills = 0
    for _ in range(5):
        before = listing()
        process = start("train", recipe, "--output", output, *options, "--resume")
        while listing() == before and process.poll() is None:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.06))
        process.kill()
        kills += process.wait(timeout=60) == -signal.SIGKILL
    assert kills >= 2
    assert tda("train", recipe, "--output", output, *options, "--resume").returncode == 0
    assert_same_run(output, whole, 40)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000039", "step-000040"]


def test_kill_before_the_first_checkpoint_starts_anew(recipe: Path, whole_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    process = start("train", recipe, "--output", output, "--train.steps", 100000, "--checkpoint.every", 0)
    metrics = output / "metrics.jsonl"
    wait_until(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 2, process)
    second = tda("train", recipe, "--output", output, "--resume")
    assert_refused(second, "another process is training", "HINT: ")
    process.kill()
    process.wait()
    assert tda("train", recipe, "--output", output, "--resume").returncode == 0
    assert_same_run(output, whole_run)


def test_output_that_is_not_empty_is_refused(recipe: Path, whole_run: Path, tmp_path: Path) -> None:
    before = (whole_run / "metrics.jsonl").read_bytes()
    assert_refused(tda("train", recipe, "--output", whole_run), "is not empty", "HINT: ", "--resume")
    assert (whole_run / "metrics.jsonl").read_bytes() == before
    (tmp_path / "notes.txt").write_text("mine")
    assert_refused(tda("train", recipe, "--output", tmp_path, "--resume"), "no run directory", "notes.txt")


def test_damaged_checkpoint_is_refused_by_file_name(recipe: Path, whole_run: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert tda("train", recipe, "--output", output, "--train.stop_after", 9).returncode == 0
    newest = output / "checkpoints" / "step-000009"
    content = bytearray((newest / "optimizer.safetensors").read_bytes())
    content[-5] ^= 1
    (newest / "optimizer.safetensors").write_bytes(content)
    refused = tda("train", recipe, "--output", output, "--resume")
    assert_refused(refused, str(newest), "optimizer.safetensors has CRC-32", "HINT: ", "step-000006")
    for path in newest.iterdir():
        path.unlink()
    newest.rmdir()
    assert tda("train", recipe, "--output", output, "--resume").returncode == 0
    assert_same_run(output, whole_run)


def test_full_disk_leaves_nothing_half_written(recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"

    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20000, 20000))

    result = tda("train", recipe, "--output", output, preexec_fn=limit_file_size)
    assert_refused(result, "model.safetensors", "File too large", at_work=True)
    assert list((output / "checkpoints").iterdir()) == []
    assert [line["step"] for line in read_lines(output / "metrics.jsonl")] == [0, 1, 2, 3]


def test_folder_that_cannot_be_written(recipe: Path, tmp_path: Path) -> None:
    assert_refused(tda("train", recipe, "--output", "/proc/run"), "/proc/run")
    (tmp_path / "file").write_text("x")
    assert_refused(tda("train", recipe, "--output", tmp_path / "file"), "is not a folder")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    result = tda("train", recipe, "--output", locked / "run", preexec_fn=obey_permissions)
    assert_refused(result, "Permission denied")


def test_divergence_stops_before_the_update(recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    rates = ("--train.learning_rate", 1e30, "--train.warmup_steps", 0, "--train.weight_decay", 0)
    result = tda("train", recipe, "--output", output, *rates, "--checkpoint.every", 1, "--validation.every", 0)
    assert_refused(result, "in step 2: stopped before the update", "step-000001", code=1, at_work=True)
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-000001"]
    assert [line["step"] for line in read_lines(output / "metrics.jsonl")] == [0, 1]


def test_changes_on_resuming(recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    assert tda("train", recipe, "--output", output, "--train.stop_after", 3).returncode == 0
    layers = tda("train", recipe, "--output", output, "--resume", "--model.layers", 3)
    assert_refused(layers, "model.layers was 2 when the run began and is 3 now", "HINT: ")
    fewer = tda("train", recipe, "--output", output, "--resume", "--train.steps", 11)
    assert_refused(fewer, "train.steps was 12", "may only grow")
    more = tda("train", recipe, "--output", output, "--resume", "--train.steps=14")
    assert more.returncode == 0
    assert "train.steps changes from 12 to 14 at step 3" in more.stderr
    assert "steps = 14  # command line" in (output / "recipe.toml").read_text()


@pytest.mark.parametrize(
    ("edit", "parts"),
    [
        (("steps = 12", "step = 12"), ["small.toml:14", "unknown key train.step", "train.steps"]),
        (("[sample]", "[samples]"), ["unknown section [samples]", "sample"]),
        (("layers = 2", "layers = 2.5"), ["small.toml:4", "model.layers is 2.5", "integer >= 1"]),
        (("tokens_per_step = 128", "tokens_per_step = 100"), ["train.tokens_per_step is 100", "64"]),
        (("heads = 2", "heads = 3"), ["heads"]),
        (("[model]", "[model"), ["small.toml:2"]),
        (("context = 16", "context = 1000000"), ["do not fill one window"]),
        (("context = 16", "context = 16\nvocabulary = 100"), ["model.vocabulary is 100", "257"]),
    ],
)
def test_bad_recipe_writes_nothing(recipe: Path, tmp_path: Path, edit: tuple[str, str], parts: list[str]) -> None:
    text = recipe.read_text()
    assert edit[0] in text
    changed = text.replace(edit[0], edit[1], 1)
    if "1000000" in edit[1]:
        changed = changed.replace("tokens_per_step = 128", "tokens_per_step = 4000000")
    path = tmp_path / "small.toml"
    path.write_text(changed)
    assert_refused(tda("train", path, "--output", tmp_path / "run"), *parts)
    assert not (tmp_path / "run").exists()


def test_bad_command_line(recipe: Path, tmp_path: Path) -> None:
    run = ("--output", tmp_path / "run")
    assert_refused(tda("train", recipe, *run, "--train.stepz", 3), "--train.stepz", "--train.steps")
    assert_refused(tda("train", recipe, *run, "--train.steps", "many"), 'train.steps is "many"', "integer >= 1")
    assert_refused(tda("train", tmp_path / "absent.toml", *run), "absent.toml")
    assert_refused(tda("train"), "recipe")
    assert_refused(tda("train", recipe, *run, "--data.path", tmp_path / "absent"), "absent")
    many = {**os.environ, "WORLD_SIZE": "2"}
    assert_refused(tda("train", recipe, *run, env=many), "WORLD_SIZE is 2")
    assert not (tmp_path / "run").exists()


def test_text_of_the_command_line_is_kept_to_the_byte_or_refused(recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    for bad, shown in ((b"a\xffb", "a\\xFFb"), (b"\xed\xa0\x80", "\\xED\\xA0\\x80"), (b"\xc3\n", "\\xC3\\x0A")):
        refused = tda("train", recipe, "--output", run, "--sample.prompt", os.fsdecode(bad))
        assert_refused(refused, f'command line: sample.prompt is "{shown}", expected UTF-8')
    assert_refused(
        tda("train", recipe, "--output", run, "--data.path", os.fsdecode(b"d\xe4ta")), 'data.path is "d\\xE4ta"'
    )
    assert not run.exists()
    prompt = 'größe \u2603 \U0001f600 "\t\\'
    assert tda("train", recipe, "--output", run, "--sample.prompt", prompt).returncode == 0
    assert {line["prompt"] for line in read_lines(run / "samples.jsonl")} == {prompt}
    for value, changes in ((prompt, False), (prompt + "?", True)):  # compared with what recipe.toml holds
        resumed = tda("train", recipe, "--output", run, "--resume", "--sample.prompt", value)
        assert resumed.returncode == 0
        assert ("sample.prompt changes" in resumed.stderr) == changes


def test_paths_may_be_any_bytes(recipe: Path, tmp_path: Path) -> None:
    """The recipe's name stands in recipe.toml, which has to stay readable; that of start weights in state.json."""
    name = os.fsdecode(b"r\xe4cipe\n\xff")
    odd = tmp_path / f"{name}.toml"
    odd.write_text(recipe.read_text())
    run = tmp_path / name
    for resume in ((), ("--resume",)):
        result = tda("train", odd, "--output", run, *resume, "--train.stop_after", 3, errors="surrogateescape")
        assert result.returncode == 0, result.stderr
    second = ("--init-from", run, "--train.stop_after", 3)
    assert tda("train", recipe, "--output", tmp_path / "second", *second, errors="surrogateescape").returncode == 0
    state = json.loads((tmp_path / "second" / "checkpoints" / "step-000003" / "state.json").read_text())
    assert "r\\xE4cipe\\x0A\\xFF/checkpoints/step-000003" in state["start_weights"]


def test_truncated_shard_is_refused_by_name(recipe: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for path in (recipe.parent / "data").iterdir():
        (data / path.name).write_bytes(path.read_bytes())
    shard = data / "train_000000.bin"
    shard.write_bytes(shard.read_bytes()[:-3])
    result = tda("train", recipe, "--output", tmp_path / "run", "--data.path", data)
    assert_refused(result, "train_000000.bin")
    assert not (tmp_path / "run").exists()
