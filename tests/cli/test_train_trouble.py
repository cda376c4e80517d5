"""What goes wrong while `tda train` runs ends it with one clear line, and costs nothing but the steps since the last
checkpoint: after the trouble is gone, the run ends with the bits of one that met none. In one process and in two.
"""

from __future__ import annotations

import os
import random
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from program import PROGRAM, obey_permissions, sign_checkpoint
from safetensors.numpy import load_file, save_file
from training_job import Job, outcome, read_lines, steps_of, train

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
steps = 1000000
tokens_per_step = 128
micro_batch = 2
learning_rate = 3e-3
minimum_learning_rate = 3e-4
warmup_steps = 2
precision = "fp32"
device = "cpu"
threads = 1

[validation]
every = 0

[checkpoint]
every = 5
keep = 0

[sample]
every = 0

[distributed]
timeout = 12
"""
MICRO_BATCHES = 4  # of a step
BOTH = pytest.mark.parametrize("count", [1, 2], ids=["one-process", "two-processes"])


def prepare(folder: Path, text: str) -> Path:
    """A recipe whose data are this text."""
    (folder / "train.txt").write_text(text)
    (folder / "val.txt").write_text("the quick fox jumps over the fox " * 10)
    inputs = ("--input", folder / "train.txt", "--validation", folder / "val.txt")
    command = [PROGRAM, "data", "prepare", "--tokenizer", "byte", *inputs, "--output", folder / "data"]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=60)
    path = folder / "small.toml"
    path.write_text(RECIPE.format(data=folder / "data"))
    return path


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    choice = random.Random(1).choice
    return prepare(tmp_path, " ".join(choice(["the", "quick", "fox", "jumps"]) for _ in range(4000)))


def assert_ended(job: Job, *parts: str, code: int = 2) -> None:
    """One process says in one line what happened; no process ends as if nothing had."""
    codes = job.wait(60)
    assert code in codes, (codes, job.err)
    assert 0 not in codes, (codes, job.err)
    assert len(job.errors()) == 1, job.err
    for part in parts:
        assert part in job.errors()[0], job.err


def assert_nothing_lost(count: int, recipe: Path, run: Path, hint: str) -> None:
    """The run goes on from its newest checkpoint, which the hint names, to the bits of a run without trouble."""
    names = steps_of(run)
    assert names == [f"step-{5 * (i + 1):06d}" for i in range(len(names))]  # none lost, and no leftover
    assert len(names) >= 2
    assert re.search(rf"the same command with --resume goes on from (the last checkpoint|.*{names[-1]})$", hint), hint
    end = ("--train.stop_after", int(names[-1][-6:]) + 2)
    resumed = Job(count, recipe, "--output", run, "--resume", *end)
    assert resumed.wait() == [0] * count, resumed.err
    assert f"resuming from {run}/checkpoints/{names[-1]}" in resumed.err[0]
    assert outcome(run) == outcome(train(count, recipe, run.parent / "whole", *end))


# ---- numbers that are not finite --------------------------------------------------------------------------------


def nan_for_an_input(weights: dict[str, np.ndarray], token: int) -> None:
    weights["embedding.weight"][token] = np.nan


def overflow_for_a_target(weights: dict[str, np.ndarray], token: int) -> None:
    """Only where the token is the target: a loss of 1e37, which is finite, and gradients whose squares are not."""
    weights["embedding.weight"][:, 0] = 100  # so the first channel of the last norm is far above 0 everywhere,
    weights["final_norm.weight"][0] = 1
    weights["head.weight"][token] = 0
    weights["head.weight"][token, 0] = -1e37  # and the token is out of the question everywhere


def spoiled_start(recipe: Path, folder: Path, spoil: Callable[[dict[str, np.ndarray], int], None]) -> Path:
    """Weights that are well as long as the byte z does not come."""
    train(1, recipe, folder / "start", "--train.stop_after", 1)
    step = folder / "start" / "checkpoints" / "step-000001"
    weights = dict(load_file(step / "model.safetensors"))
    spoil(weights, ord("z"))
    save_file(weights, step / "model.safetensors")
    sign_checkpoint(step)
    return step


@pytest.mark.parametrize(
    ("spoil", "what"), [(nan_for_an_input, "loss"), (overflow_for_a_target, "gradient norm")], ids=["loss", "gradient"]
)
def test_one_bad_window_stops_training_before_the_update(
    tmp_path: Path, spoil: Callable[[dict[str, np.ndarray], int], None], what: str
) -> None:
    """A single token of the data is the trouble: step and rank that met it are named, and the step before it stays."""
    words = ["the quick fox jumps"] * 800
    words[350] = "the quick fox zumps"
    recipe = prepare(tmp_path, " ".join(words))
    start = ("--init-from", spoiled_start(recipe, tmp_path, spoil), "--checkpoint.every", 1, "--checkpoint.keep", 3)

    # With steps of one micro batch the step says which micro batch of the run holds the byte.
    alone = Job(1, recipe, "--output", tmp_path / "alone", *start, "--train.tokens_per_step", 32)
    assert_ended(alone, f"the {what} is", code=1)
    found = re.search(rf"the {what} is -?(nan|inf) in step (\d+): stopped before the update", alone.errors()[0])
    assert found, alone.errors()
    micro_batch = int(found.group(2)) - 1
    step = micro_batch // MICRO_BATCHES + 1
    assert step > 2, "choose another place for the byte"

    for count, rank in ((1, ""), (2, f" of rank {micro_batch % MICRO_BATCHES % 2}")):
        run = tmp_path / f"run-{count}"
        for again in ((), ("--resume",)):  # what the checkpoint holds meets the same end
            job = Job(count, recipe, "--output", run, *start, *again)
            assert_ended(job, f"in step {step}: stopped before the update", code=1)
            assert re.search(rf"the {what}{rank} is -?(nan|inf) in step", job.errors()[0]), job.err
            assert f"the last good checkpoint is {run}/checkpoints/step-{step - 1:06d}" in job.errors()[0]
            assert steps_of(run)[-1] == f"step-{step - 1:06d}"
            lines = read_lines(run)
            assert [line["step"] for line in lines] == list(range(step))
            assert all(np.isfinite(line["gradient_norm"]) for line in lines[1:])


# ---- data that change -------------------------------------------------------------------------------------------


def truncate(shard: Path) -> None:
    os.truncate(shard, 1500)


def overwrite_with_garbage(shard: Path) -> None:
    with shard.open("r+b") as file:
        file.seek(1024)
        file.write(b"\xff" * (shard.stat().st_size - 1024))


def overwrite_with_other_text(shard: Path) -> None:
    """Tokens that are valid, so that nothing but the file's own date gives the change away."""
    with shard.open("r+b") as file:
        file.seek(1024)
        file.write(b"a\0" * ((shard.stat().st_size - 1024) // 2))


@BOTH
@pytest.mark.parametrize("damage", [truncate, overwrite_with_garbage, overwrite_with_other_text])
def test_shard_that_changes_in_mid_run(
    recipe: Path, tmp_path: Path, count: int, damage: Callable[[Path], None]
) -> None:
    shard, run = tmp_path / "data" / "train_000000.bin", tmp_path / "run"
    content = shard.read_bytes()
    job = Job(count, recipe, "--output", run)
    job.wait_for_steps(run, 12)
    damage(shard)
    assert_ended(job, str(shard), "has 1500 now" if damage is truncate else "was written to after it was opened")
    shard.write_bytes(content)
    assert_nothing_lost(count, recipe, run, job.hints()[0])


def test_shards_may_be_removed_while_they_are_in_use(recipe: Path, tmp_path: Path) -> None:
    shard, run = tmp_path / "data" / "train_000000.bin", tmp_path / "run"
    content = shard.read_bytes()
    job = Job(1, recipe, "--output", run, "--train.stop_after", 60)
    job.wait_for_steps(run, 12)
    shard.unlink()
    assert job.wait() == [0], job.err
    shard.write_bytes(content)
    assert outcome(run) == outcome(train(1, recipe, tmp_path / "whole", "--train.stop_after", 60))


# ---- a disk that refuses ----------------------------------------------------------------------------------------


@BOTH
def test_checkpoints_folder_that_becomes_read_only(recipe: Path, tmp_path: Path, count: int) -> None:
    run = tmp_path / "run"
    job = Job(count, recipe, "--output", run, preexec_fn=obey_permissions)
    job.wait_for_steps(run, 12)
    folder = run / "checkpoints"
    folder.chmod(0o500)
    try:
        assert_ended(job, str(folder), "Permission denied")
    finally:
        folder.chmod(0o700)
    leftovers = [name for name in steps_of(run) if not name.startswith("step-")]
    assert leftovers in ([], [f".writing-step-{5 * len(steps_of(run)):06d}"])  # the one that was being written
    for name in leftovers:  # as the next start does
        shutil.rmtree(folder / name)
    assert_nothing_lost(count, recipe, run, job.hints()[0])


@BOTH
def test_checkpoints_folder_that_is_replaced_by_a_file(recipe: Path, tmp_path: Path, count: int) -> None:
    run = tmp_path / "run"
    job = Job(count, recipe, "--output", run)
    job.wait_for_steps(run, 12)
    folder = run / "checkpoints"
    folder.rename(tmp_path / "aside")
    folder.write_text("a file")
    assert_ended(job, str(folder))
    folder.unlink()
    (tmp_path / "aside").rename(folder)
    for name in [name for name in steps_of(run) if not name.startswith("step-")]:
        shutil.rmtree(folder / name)
    assert_nothing_lost(count, recipe, run, job.hints()[0])


@BOTH
def test_limit_on_file_sizes_in_mid_run(recipe: Path, tmp_path: Path, count: int) -> None:
    """Stands for a disk that is full where no other can be mounted."""
    run = tmp_path / "run"
    job = Job(count, recipe, "--output", run)
    job.wait_for_steps(run, 12)
    for process in job.processes:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (30000, 30000))
    assert_ended(job, f"cannot write {run}", "File too large")
    assert_nothing_lost(count, recipe, run, job.hints()[0])


def can_mount() -> bool:
    probe = ["unshare", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "none", "/mnt"]
    try:
        return subprocess.run(probe, capture_output=True, check=False, timeout=20).returncode == 0
    except OSError:
        return False


# Left out, not skipped, where the system lets nobody mount: the limit above shows the same.
@pytest.mark.parametrize("size", [600] if can_mount() else [])
def test_full_disk(recipe: Path, tmp_path: Path, size: int) -> None:
    """A disk of its own that holds three checkpoints or so; in a name space of its own, so that no mount stays."""
    disk, run = tmp_path / "disk", tmp_path / "run"
    disk.mkdir()
    script = (
        'mount -t tmpfs -o size="$1"k none "$2" && "$3" train "$4" --output "$2"/run; '
        'code=$?; cp -a "$2"/run "$5"; exit $code'
    )
    words = [str(size), str(disk), str(PROGRAM), str(recipe), str(run)]
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", script, "sh", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 2, done.stderr
    assert len(errors) == 1
    assert re.search(rf"cannot (write|create) {disk}/run/.*No space left on device", errors[0])
    hint = next(line for line in done.stderr.splitlines() if line.startswith("HINT: "))
    assert_nothing_lost(1, recipe, run, hint)


# ---- a recipe that changes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ('mechanism = "softmax"', 'mechanism = "tda"', "model.mechanism"),
        ("width = 16", "width = 32", "model.width"),
        ("context = 16", "context = 32", "model.context"),
        ("tokens_per_step = 128", "tokens_per_step = 256", "train.tokens_per_step"),
        ("threads = 1", "threads = 1\nseed = 7", "train.seed"),
        ("steps = 1000000", "steps = 999", "train.steps"),
    ],
)
def test_recipe_that_would_be_another_run(recipe: Path, tmp_path: Path, old: str, new: str, key: str) -> None:
    run = train(1, recipe, tmp_path / "run", "--train.stop_after", 7)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new, 1))
    job = Job(1, recipe, "--output", run, "--resume")
    assert job.wait(60) == [2]
    assert len(job.errors()) == 1
    assert re.match(rf"error: {key} was \S+ when the run began and is \S+ now", job.errors()[0]), job.errors()
    assert job.hints() == ["HINT: give it its old value, or train into another --output"]
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_recipe_that_stays_the_same_run(recipe: Path, tmp_path: Path) -> None:
    """Harmless changes are taken, said and kept; the weights are those of a run that always had them."""
    run = train(1, recipe, tmp_path / "run", "--train.stop_after", 7)
    text = recipe.read_text()
    for old, new in (("every = 5", "every = 4"), ("keep = 0", "keep = 5"), ("timeout = 12", "timeout = 20")):
        assert old in text
        text = text.replace(old, new, 1)
    recipe.write_text(text)
    resumed = Job(1, recipe, "--output", run, "--resume", "--train.stop_after", 12)
    assert resumed.wait() == [0], resumed.err
    for line in (
        "train.stop_after changes from 7 to 12 at step 7",
        "checkpoint.every changes from 5 to 4 at step 7",
        "checkpoint.keep changes from 0 to 5 at step 7",
        "distributed.timeout changes from 12.0 to 20.0 at step 7",
    ):
        assert line in resumed.err[0]
    assert "keep = 5" in (run / "recipe.toml").read_text()
    assert steps_of(run) == [f"step-{step:06d}" for step in (5, 7, 8, 12)]
    assert outcome(run) == outcome(train(1, recipe, tmp_path / "whole", "--train.stop_after", 12))


# ---- kill -9 ----------------------------------------------------------------------------------------------------


@BOTH
def test_five_runs_killed_at_random_moments(recipe: Path, tmp_path: Path, count: int) -> None:
    """Whatever the moment, start and end included, the run ends with the bits of the one that nobody killed."""
    end = ("--train.stop_after", 120)
    expected = outcome(train(count, recipe, tmp_path / "whole", *end))
    moments = random.Random()
    seed = moments.randrange(2**32)
    print(f"seed of the moments: {seed}", file=sys.stderr)
    moments.seed(seed)
    killed = 0
    for number in range(5):
        run = tmp_path / f"run-{number}"
        job = Job(count, recipe, "--output", run, *end, "--resume")
        if number > 0:  # number 0 is hit while it starts
            job.wait_for_steps(run, moments.randrange(1, 110))
        try:
            job.processes[0].wait(timeout=moments.uniform(0, 0.3 if number == 0 else 0.02))
        except subprocess.TimeoutExpired:
            killed += 1
        job.kill()
        assert outcome(train(count, recipe, run, *end, "--resume")) == expected, f"run {number}"
    assert killed >= 3
