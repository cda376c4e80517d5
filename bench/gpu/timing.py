"""Times calls in sustained bursts, the contenders by turns.

A burst is a row of calls without a pause, between two device events. Contenders take turns burst by burst, so that
drifting clocks and temperature meet all of them. Before each burst its contender runs for a few milliseconds untimed,
so that the previous one's clocks and cache are gone, unless a single call is as long as a burst. The first round is
thrown away. Nothing else is flushed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

Call = Callable[[], object]
MOST_RUNS = 5000
LONGEST_LAUNCH_MS = 2.0  # no call takes the host longer
HOST_SHARE = 0.5  # from here a disturbance of the host shows in the time of the device (measured from 0.6 on)


@dataclasses.dataclass(frozen=True)
class BurstPlan:
    """How often to run: ``bursts`` of ``burst_ms`` or more, and ``total_runs`` or more in all of them together."""

    bursts: int = 7
    burst_ms: float = 30.0
    settle_ms: float = 5.0
    total_runs: int = 35

    def runs(self, milliseconds: float) -> int:
        """Calls in a burst, for calls of that length."""
        by_time = math.ceil(self.burst_ms / max(milliseconds, 1e-4))
        return min(MOST_RUNS, max(by_time, math.ceil(self.total_runs / self.bursts), 1))

    def settling_runs(self, milliseconds: float) -> int:
        return min(MOST_RUNS, max(1, math.ceil(self.settle_ms / max(milliseconds, 1e-4))))


STANDARD = BurstPlan()
SCALING = BurstPlan(total_runs=7)  # for sequences so long that one call is a burst
QUICK = BurstPlan(bursts=3, burst_ms=10.0, settle_ms=2.0, total_runs=3)


@dataclasses.dataclass(frozen=True)
class Contender:
    """``prepare()`` returns the call to be timed. What is not ``required`` may fail and is then reported as such."""

    name: str
    prepare: Callable[[], Call]
    context: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext
    required: bool = False


@dataclasses.dataclass(frozen=True)
class Timing:
    """Milliseconds a call, one value a burst. ``launch`` is stream, or graph where the host was the bottleneck."""

    bursts: tuple[float, ...]
    runs_per_burst: int
    launch: str = "stream"

    @property
    def median(self) -> float:
        return statistics.median(self.bursts)

    def to_json(self) -> dict[str, object]:
        low, high = min(self.bursts), max(self.bursts)
        return {
            "median_ms": self.median,
            "low_ms": low,
            "high_ms": high,
            "spread_percent": 100.0 * (high - low) / self.median,
            "bursts_ms": list(self.bursts),
            "runs_per_burst": self.runs_per_burst,
            "launch": self.launch,
        }


class Stopwatch(Protocol):
    """Where time comes from; the tests have one of their own."""

    def milliseconds(self, call: Call, runs: int) -> float:
        """Of one of ``runs`` calls in a row."""

    def relieve_host(self, call: Call, milliseconds: float) -> tuple[Call, str]:
        """The call, or a replay of it if the host cannot launch it as fast as the device runs it."""


@dataclasses.dataclass(frozen=True)
class Replay:
    """Replays a captured call, and keeps it: the graph reads tensors that nothing else may hold, such as what a forward
    left for its backward. Freed, they would be overwritten, and another amount of work be timed."""

    graph: torch.cuda.CUDAGraph
    captured: Call

    def __call__(self) -> None:
        self.graph.replay()


class DeviceStopwatch:
    """Device events on the current stream."""

    def milliseconds(self, call: Call, runs: int) -> float:
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        for _ in range(runs):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / runs

    def relieve_host(self, call: Call, milliseconds: float) -> tuple[Call, str]:
        if milliseconds > LONGEST_LAUNCH_MS or self._host_milliseconds(call) < HOST_SHARE * milliseconds:
            return call, "stream"
        try:
            return self._captured(call), "graph"
        except Exception:  # whatever a peer does that cannot be captured
            torch.cuda.synchronize()
            return call, "stream, host-bound"

    @staticmethod
    def _host_milliseconds(call: Call, runs: int = 10, attempts: int = 3) -> float:
        """What it takes to launch a call; few enough launches that the queue does not fill up."""
        times = []
        for _ in range(attempts):
            torch.cuda.synchronize()
            start = time.perf_counter()
            for _ in range(runs):
                call()
            times.append(1e3 * (time.perf_counter() - start) / runs)
        torch.cuda.synchronize()
        return min(times)

    @staticmethod
    def _captured(call: Call) -> Call:
        """A replay of ``call``. The backward of a graph runs on the stream of its forward, hence the current one."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            call()
        graph.replay()
        return Replay(graph, call)


@dataclasses.dataclass
class _Runner:
    contender: Contender
    call: Call
    milliseconds: float
    launch: str
    bursts: list[float] = dataclasses.field(default_factory=list)


def first_line(error: BaseException) -> str:
    """One line for a table."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200]}" if text else type(error).__name__


def estimate(call: Call, plan: BurstPlan, stopwatch: Stopwatch) -> float:
    """Milliseconds a call, from as few calls as give a usable figure."""
    once = stopwatch.milliseconds(call, 1)
    return once if once > plan.settle_ms else stopwatch.milliseconds(call, plan.settling_runs(once))


def measure(contenders: Sequence[Contender], plan: BurstPlan, stopwatch: Stopwatch) -> dict[str, Timing | str]:
    """The timing of each contender, or the reason why it has none.

    Raises:
        Exception: whatever a required contender raised.
    """
    results: dict[str, Timing | str] = {}
    runners: list[_Runner] = []
    for contender in contenders:
        try:
            with contender.context():
                call = contender.prepare()
                call()
                call, launch = stopwatch.relieve_host(call, estimate(call, plan, stopwatch))
                runners.append(_Runner(contender, call, estimate(call, plan, stopwatch), launch))
        except Exception as error:
            if contender.required:
                raise
            results[contender.name] = first_line(error)
    for burst in range(plan.bursts + 1):
        for runner in runners:
            with runner.contender.context():
                if runner.milliseconds < plan.burst_ms:
                    stopwatch.milliseconds(runner.call, plan.settling_runs(runner.milliseconds))
                milliseconds = stopwatch.milliseconds(runner.call, plan.runs(runner.milliseconds))
            if burst > 0:
                runner.bursts.append(milliseconds)
    for runner in runners:
        results[runner.contender.name] = Timing(tuple(runner.bursts), plan.runs(runner.milliseconds), runner.launch)
    return {contender.name: results[contender.name] for contender in contenders}
