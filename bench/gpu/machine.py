"""What ran where, and the two rates that bound everything: of matrix products and of memory."""

from __future__ import annotations

import contextlib
import subprocess
from datetime import datetime, timezone
from pathlib import Path

import torch

from bench.gpu.timing import BurstPlan, Call, DeviceStopwatch

ROOT = Path(__file__).resolve().parents[2]
MATRIX_SIZE = 8192
COPY_BYTES = 4 << 30


def output_of(*command: str) -> str | None:
    """The first line that a program prints, or nothing if it cannot."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().partition("\n")[0] or None


def commit_of_checkout() -> str:
    commit = output_of("git", "rev-parse", "--short", "HEAD")
    if commit is None:
        return "unknown"
    return f"{commit} with changes" if output_of("git", "status", "--porcelain", "--untracked-files=no") else commit


def own_stream() -> contextlib.AbstractContextManager[None]:
    """Makes a new stream the current one. Only there can a backward pass be captured as a graph: it runs on the stream
    of its forward, and the default stream cannot be captured."""
    return torch.cuda.stream(torch.cuda.Stream())


def describe_machine() -> dict[str, object]:
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "date": datetime.now(timezone.utc).date().isoformat(),
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "l2_bytes": properties.L2_cache_size,
        "driver": output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader") or "unknown",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "torch": torch.__version__,
    }


def matrix_rate(plan: BurstPlan) -> float:
    """TFLOP/s of a bf16 product of two random 8192 x 8192 matrices, the fastest burst."""
    a, b = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    return 2e-9 * MATRIX_SIZE**3 / fastest(lambda: a @ b, plan)


def copy_rate(plan: BurstPlan) -> float:
    """GB/s of a copy of 4 GiB inside the device, bytes read and written."""
    source = torch.empty(COPY_BYTES // 4, device="cuda", dtype=torch.float32).normal_()
    target = torch.empty_like(source)
    return 2e-6 * COPY_BYTES / fastest(lambda: target.copy_(source), plan)


def fastest(call: Call, plan: BurstPlan) -> float:
    """Milliseconds a call of the fastest burst after the first: a ceiling is what can be reached."""
    stopwatch = DeviceStopwatch()
    runs = plan.runs(stopwatch.milliseconds(call, 3))
    return min([stopwatch.milliseconds(call, runs) for _ in range(plan.bursts + 1)][1:])
