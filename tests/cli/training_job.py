"""Processes of `tda train` as a launcher starts them, without the seconds that torchrun takes to start."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

from program import PROGRAM, text_of

TIMING_FIELDS = {"seconds", "tokens_per_second", "model_flops_utilization"}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


class Job:
    """`count` processes of one run; a single one without a launcher's environment."""

    def __init__(
        self, count: int, *arguments: object, by_rank: dict[int, tuple[object, ...]] | None = None, **options: Any
    ) -> None:
        port = str(free_port())
        self.processes = []
        for rank in range(count):
            world = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            launched = {**world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port} if count > 1 else {}
            command = [str(PROGRAM), "train", *map(str, arguments), *map(str, (by_rank or {}).get(rank, ()))]
            pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
            self.processes.append(subprocess.Popen(command, env={**os.environ, **launched}, **pipes, **options))
        self.out: list[str] = []
        self.err: list[str] = []

    def wait(self, timeout: float = 120) -> list[int]:
        """Exit codes by rank."""
        deadline = time.monotonic() + timeout
        try:
            for process in self.processes:
                out, err = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
                self.out.append(text_of(out))
                self.err.append(text_of(err))
        finally:
            for process in self.processes:
                if process.poll() is None:
                    process.kill()
                    process.communicate()
        return [process.returncode for process in self.processes]

    def wait_for_steps(self, output: Path, steps: int) -> None:
        metrics = output / "metrics.jsonl"
        while not metrics.exists() or metrics.read_bytes().count(b"\n") <= steps:
            assert all(process.poll() is None for process in self.processes), self.wait()
            time.sleep(0.01)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
        self.wait()

    def errors(self) -> list[str]:
        return [line for text in self.err for line in text.splitlines() if line.startswith(("error: ", "terminate"))]

    def hints(self) -> list[str]:
        return [line for text in self.err for line in text.splitlines() if line.startswith("HINT: ")]


def train(count: int, recipe: Path, output: Path, *options: object) -> Path:
    job = Job(count, recipe, "--output", output, *options)
    codes = job.wait()
    assert codes == [0] * count, job.err
    return output


def read_lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def steps_of(run: Path) -> list[str]:
    """What stands in the checkpoints' folder, hidden leftovers included."""
    folder = run / "checkpoints"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def outcome(run: Path) -> dict[str, object]:
    """What has to come out the same however often a run was stopped."""
    newest = run / "checkpoints" / steps_of(run)[-1]
    files = {path.name: path.read_bytes() for path in newest.iterdir() if path.suffix == ".safetensors"}
    assert len(files) == 2
    untimed = [{key: line[key] for key in line if key not in TIMING_FIELDS} for line in read_lines(run)]
    return {"step": newest.name, "metrics": untimed, **files}
