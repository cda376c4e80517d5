"""`tda train` in many processes: the losses of one, one writer, one end for all whatever ends one of them."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from program import PROGRAM
from training_job import Job, read_lines, train

# Softmax: rounding in another order stays rounding. With thresholds a score that rounds across one makes another model
# after some steps, in one process as well (with another micro_batch); see docs/training.md.
RECIPE = """
[model]
mechanism = "softmax"
layers = 2
heads = 2
width = 16
context = 16

[data]
path = "{data}"

[train]
steps = 50
tokens_per_step = 256
micro_batch = 2
learning_rate = 3e-3
minimum_learning_rate = 3e-4
warmup_steps = 2
precision = "fp32"
device = "cpu"
threads = 1

[validation]
every = 10
batches = 2

[checkpoint]
every = 20
keep = 2

[sample]
every = 25
tokens = 8
prompt = "the"

[distributed]
bucket_megabytes = 0.01
"""
SHARDED = ("--distributed.shard_optimizer", "true")
ENDLESS = ("--train.steps", 1000000, "--validation.every", 0, "--sample.every", 0, "--checkpoint.every", 0)
MODEL_FILES = ("model.safetensors", "optimizer.safetensors")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many")
    choice = random.Random(1).choice
    for name, count in (("train", 4000), ("val", 400)):
        (folder / f"{name}.txt").write_text(" ".join(choice(["the", "quick", "fox", "jumps"]) for _ in range(count)))
    inputs = ("--input", folder / "train.txt", "--validation", folder / "val.txt")
    command = [PROGRAM, "data", "prepare", "--tokenizer", "byte", *inputs, "--output", folder / "data"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=60)
    path = folder / "small.toml"
    path.write_text(RECIPE.format(data=folder / "data"))
    return path


@pytest.fixture(scope="module")
def alone(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(1, recipe, tmp_path_factory.mktemp("alone") / "run")


def assert_same_losses(run: Path, expected: Path, tolerance: float = 1e-4) -> None:
    lines, expected_lines = read_lines(run), read_lines(expected)
    assert [line["step"] for line in lines] == [line["step"] for line in expected_lines]
    for line, other in zip(lines, expected_lines, strict=True):
        assert set(line) == set(other)
        for key in ("train_loss", "val_loss"):
            if key in line:
                assert line[key] == pytest.approx(other[key], abs=tolerance), (line["step"], key)


@pytest.mark.parametrize(("count", "options"), [(2, ()), (4, ()), (4, SHARDED)])
def test_losses_are_those_of_one_process(
    recipe: Path, alone: Path, tmp_path: Path, count: int, options: tuple[object, ...]
) -> None:
    output = tmp_path / "run"
    job = Job(count, recipe, "--output", output, *options)
    assert job.wait() == [0] * count, job.err
    assert_same_losses(output, alone)
    assert job.out == [f"{output}/checkpoints/step-000050\n"] + [""] * (count - 1)
    assert job.err[1:] == [""] * (count - 1)
    described = re.search(
        r"processes   (\d), (\d) passes a step each; gradients in (\d+) buckets over gloo", job.err[0]
    )
    assert described, job.err[0]
    assert [int(number) for number in described.groups()[:2]] == [count, 8 // count]
    assert int(described.group(3)) >= 4
    names = [sorted(path.name for path in (run / "checkpoints").iterdir()) for run in (output, alone)]
    assert names[0] == names[1]


def test_thresholds_agree_where_rounding_stays_small(recipe: Path, tmp_path: Path) -> None:
    """A large epsilon keeps the norm of nearly empty rows from blowing rounding up."""
    options = ("--model.mechanism", "tda", "--model.head_norm_eps", 0.01, "--train.learning_rate", 1e-3)
    one = train(1, recipe, tmp_path / "one", *options)
    assert_same_losses(train(2, recipe, tmp_path / "two", *options), one)


@pytest.mark.parametrize("options", [(), SHARDED], ids=["replicated", "sharded"])
def test_resuming_is_bit_exact(recipe: Path, tmp_path: Path, options: tuple[object, ...]) -> None:
    whole = train(2, recipe, tmp_path / "whole", *options, "--train.steps", 20)
    parts = train(2, recipe, tmp_path / "parts", *options, "--train.steps", 20, "--train.stop_after", 7)
    train(2, recipe, parts, *options, "--train.steps", 20, "--resume")
    for name in MODEL_FILES:
        path = Path("checkpoints") / "step-000020" / name
        assert (parts / path).read_bytes() == (whole / path).read_bytes(), name
    losses = [[line.get("train_loss") for line in read_lines(run)] for run in (parts, whole)]
    assert losses[0] == losses[1]


def test_resuming_with_other_numbers_of_processes(recipe: Path, alone: Path, tmp_path: Path) -> None:
    run = train(2, recipe, tmp_path / "run", *SHARDED, "--train.stop_after", 15)
    train(4, recipe, run, *SHARDED, "--train.stop_after", 30, "--resume")
    train(1, recipe, run, "--resume", "--train.stop_after", 40)
    train(2, recipe, run, "--resume")
    assert_same_losses(run, alone)


@pytest.mark.parametrize(
    ("number", "ranks", "code"), [(signal.SIGTERM, [1], 143), (signal.SIGINT, [0, 1], 130)], ids=["one", "all"]
)
def test_signal_stops_all_with_one_checkpoint(
    recipe: Path, tmp_path: Path, number: int, ranks: list[int], code: int
) -> None:
    output = tmp_path / "run"
    job = Job(2, recipe, "--output", output, *ENDLESS)
    job.wait_for_steps(output, 3)
    for rank in ranks:
        job.processes[rank].send_signal(number)
    assert job.wait(60) == [code, code], job.err
    last = read_lines(output)[-1]["step"]
    assert [path.name for path in (output / "checkpoints").iterdir()] == [f"step-{last:06d}"]
    train(2, recipe, output, *ENDLESS, "--resume", "--train.stop_after", last + 2)


@pytest.mark.parametrize(
    ("number", "lost", "message"),
    [
        (signal.SIGKILL, 1, "rank 1 died: no sign of life"),
        (signal.SIGKILL, 0, "rank 0 died: its store"),
        (signal.SIGSTOP, 3, "rank 3 died: no sign of life"),
    ],
)
def test_lost_process_ends_the_job(recipe: Path, tmp_path: Path, number: int, lost: int, message: str) -> None:
    output = tmp_path / "run"
    job = Job(4, recipe, "--output", output, *ENDLESS, "--distributed.timeout", 12)
    job.wait_for_steps(output, 3)
    job.processes[lost].send_signal(number)
    start = time.monotonic()
    for rank, process in enumerate(job.processes):
        if rank != lost:
            assert process.wait(timeout=60) == 1
    assert time.monotonic() - start < 60
    job.processes[lost].kill()
    job.wait()
    assert len(job.errors()) == 1, job.err
    assert message in job.errors()[0]


def test_loss_that_is_not_finite_on_one_rank_stops_all_before_the_update(recipe: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    # Rank 1 alone divides by the norm of rows that are all zeros; no validation, which would meet that first.
    data = tmp_path / "data"
    data.mkdir()
    for path in (recipe.parent / "data").iterdir():
        if path.name.startswith("val"):
            continue
        text = path.read_text() if path.suffix == ".json" else None
        if text is None:
            (data / path.name).write_bytes(path.read_bytes())
        else:
            (data / path.name).write_text(re.sub(r'"val_tokens": \d+', '"val_tokens": 0', text))
    job = Job(
        *(2, recipe, "--output", output, "--data.path", data, "--checkpoint.every", 1, "--model.mechanism", "tda"),
        by_rank={1: ("--model.head_norm_eps", "1e-300")},
    )
    assert job.wait(60) == [1, 1], job.err
    assert len(job.errors()) == 1, job.err
    assert re.search(r"the loss of rank 1 is -?nan in step 1: stopped before the update", job.errors()[0])
    assert not (output / "checkpoints").exists()


@pytest.mark.parametrize(
    ("count", "options", "parts"),
    [
        (3, (), ["train.tokens_per_step is 256", "3 x 2 x 16 = 96"]),
        (2, ("--distributed.backend", "nccl"), ["distributed.backend is nccl", "expected gloo for train.device cpu"]),
        (2, ("--data.path", "/nowhere"), ["dataset /nowhere"]),
        (2, ("--train.stepz", 1), ["--train.stepz"]),
    ],
)
def test_what_cannot_work_is_refused(
    recipe: Path, tmp_path: Path, count: int, options: tuple[object, ...], parts: list[str]
) -> None:
    job = Job(count, recipe, "--output", tmp_path / "run", *options)
    assert job.wait(60) == [2] * count, job.err
    if "--train.stepz" not in options:  # the command line is read before processes know each other
        assert len(job.errors()) == 1, job.err
    for part in parts:
        assert part in job.err[0]
    assert not (tmp_path / "run").exists()


def test_bad_input_of_one_rank_names_it(recipe: Path, tmp_path: Path) -> None:
    job = Job(2, recipe, "--output", tmp_path / "run", by_rank={1: ("--data.path", "/nowhere")})
    assert job.wait(60) == [2, 2], job.err
    assert len(job.errors()) == 1, job.err
    assert job.errors()[0].startswith("error: rank 1: dataset /nowhere")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but RANK is not set"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is two"),
        ({"WORLD_SIZE": "2", "RANK": "2", "LOCAL_RANK": "0"}, "RANK is 2, expected an integer from 0 to 1"),
        ({"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}, "MASTER_ADDR is not set"),
    ],
)
def test_bad_environment_is_refused(recipe: Path, tmp_path: Path, environment: dict[str, str], message: str) -> None:
    command = [str(PROGRAM), "train", str(recipe), "--output", str(tmp_path / "run")]
    clean = {key: value for key, value in os.environ.items() if key not in ("RANK", "LOCAL_RANK", "MASTER_ADDR")}
    result = subprocess.run(
        command, env={**clean, **environment}, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 2
    assert message in result.stderr
    assert not (tmp_path / "run").exists()


def test_torchrun_restarts_from_the_last_checkpoint(recipe: Path, tmp_path: Path) -> None:
    options = ("--train.steps", 100, "--checkpoint.every", 5, "--validation.every", 0, "--sample.every", 0)
    output = tmp_path / "run"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "--max-restarts", 1)
    arguments = ("--no-python", PROGRAM, "train", recipe, "--output", output, "--resume", *options)
    command = [sys.executable, *map(str, (*launcher, *arguments))]
    with (tmp_path / "torchrun.log").open("w+") as log:
        torchrun = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            while not (output / "checkpoints" / "step-000005").exists() and torchrun.poll() is None:
                time.sleep(0.02)
            children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children").read_text().split()
            ranks = [pid for pid in children if Path(f"/proc/{pid}/exe").resolve() == PROGRAM.resolve()]
            assert len(ranks) == 2
            os.kill(int(ranks[-1]), signal.SIGKILL)
            code = torchrun.wait(timeout=180)
        finally:
            torchrun.kill()
            torchrun.wait()
        log.seek(0)
        text = log.read()
    assert code == 0, text
    assert "resuming from" in text
    assert [line["step"] for line in read_lines(output)] == list(range(101))
    whole = train(2, recipe, tmp_path / "whole", *options)
    for name in MODEL_FILES:
        path = Path("checkpoints") / "step-000100" / name
        assert (output / path).read_bytes() == (whole / path).read_bytes(), name
