"""Proves that SIGKILL loses nothing: runs killed at random moments and resumed end bit-identical to one left alone.

    .venv/bin/python bench/kill_and_resume.py --runs 50 --output bench/results/DATE-MACHINE-kill-and-resume.json

Each run is killed at a moment drawn evenly from the time the whole run takes, then again with even odds, and then left
to finish. Compared are the weights, the optimizer's state, the tokenizer and every line of metrics but its timings.
With --processes N, torchrun starts N processes with Gloo, and all of them are killed at once. --device cuda trains on a
GPU (one process).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROGRAM = Path(os.environ.get("TDA_BINARY") or ROOT / "build" / "tda")
TIMINGS = {"seconds", "tokens_per_second", "model_flops_utilization"}

RECIPE = """
[model]
mechanism = "tda"
layers = 2
heads = 2
width = 32
context = 32
beta = 0.25
[data]
path = "{data}"
[train]
steps = 60
tokens_per_step = 512
micro_batch = 4
learning_rate = 1e-2
minimum_learning_rate = 1e-3
warmup_steps = 5
precision = "fp32"
device = "{device}"
threads = 1
[validation]
every = 15
batches = 1
[checkpoint]
every = 4
keep = 2
"""


def prepare(folder: Path, device: str) -> Path:
    choice = random.Random(1).choice
    words = ["In", "the", "beginning", "God", "created", "the", "heaven", "and", "the", "earth"]
    for name, count in (("train", 8000), ("validation", 800)):
        (folder / f"{name}.txt").write_text(" ".join(choice(words) for _ in range(count)))
    data = folder / "data"
    texts = ["--input", folder / "train.txt", "--validation", folder / "validation.txt"]
    command = [PROGRAM, "data", "prepare", "--tokenizer", "byte", *texts, "--output", data]
    subprocess.run(command, check=True, capture_output=True)
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE.format(data=data, device=device))
    return recipe


def start(recipe: Path, output: Path, processes: int) -> subprocess.Popen[bytes]:
    command: list[object] = [PROGRAM, "train", recipe, "--output", output, "--resume"]
    if processes > 1:
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        command = [*launcher, "--no-python", *command]
    quiet = subprocess.DEVNULL
    # A session of its own, so that one signal reaches torchrun and all that it started.
    return subprocess.Popen([str(word) for word in command], stdout=quiet, stderr=quiet, start_new_session=True)


def finish(recipe: Path, output: Path, processes: int) -> float:
    began = time.monotonic()
    code = start(recipe, output, processes).wait(timeout=600)
    if code != 0:
        raise SystemExit(f"error: a run that nobody killed ended with exit code {code}: {output}")
    return time.monotonic() - began


def outcome(run: Path) -> dict[str, object]:
    """Everything that has to come out the same."""
    newest = max((run / "checkpoints").iterdir())
    files = {path.name: path.read_bytes() for path in newest.iterdir() if path.suffix == ".safetensors"}
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [{key: value for key, value in line.items() if key not in TIMINGS} for line in lines]
    return {"step": newest.name, "metrics": metrics, **files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=50, help="killed and resumed runs (default: 50)")
    parser.add_argument("--processes", type=int, default=1, help="processes of each run (default: 1)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train (default: cpu)")
    parser.add_argument("--seed", type=int, default=1, help="seed of the moments (default: 1)")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    options = parser.parse_args()

    moments = random.Random(options.seed)
    differing: list[int] = []
    kills: list[float] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = prepare(folder, options.device)
        duration = finish(recipe, folder / "whole", options.processes)
        expected = outcome(folder / "whole")
        for run in range(options.runs):
            output = folder / f"run-{run}"
            again = True
            while again:
                process = start(recipe, output, options.processes)
                moment = moments.uniform(0.0, duration)
                try:
                    process.wait(timeout=moment)
                    break  # it had finished before
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    kills.append(round(moment, 3))
                again = moments.random() < 0.5
            finish(recipe, output, options.processes)
            same = outcome(output) == expected
            if not same:
                differing.append(run)
            print(f"run {run + 1}/{options.runs}: {len(kills)} kills so far, {'identical' if same else 'DIFFERENT'}")

    result = {
        "runs": options.runs,
        "processes": options.processes,
        "device": options.device,
        "kills": len(kills),
        "seconds_of_a_whole_run": round(duration, 2),
        "kill_moments_seconds": kills,
        "runs_that_differ": differing,
        "command": " ".join(["bench/kill_and_resume.py", *sys.argv[1:]]),
    }
    print(f"{options.runs} runs, {len(kills)} kills, {len(differing)} differ from the run left alone")
    if options.output:
        options.output.write_text(json.dumps(result, indent=1) + "\n")
    sys.exit(1 if differing else 0)


if __name__ == "__main__":
    main()
