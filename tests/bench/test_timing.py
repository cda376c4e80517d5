"""How the GPU benchmark takes its times, with a clock of its own."""

from __future__ import annotations

import contextlib
import gc
import weakref

import pytest
import torch

from bench.gpu.claims import CLAIMS, Case
from bench.gpu.contenders import FORWARD
from bench.gpu.inputs import Shape
from bench.gpu.measuring import Bench, measure_row
from bench.gpu.result import ROW, TIMING
from bench.gpu.timing import QUICK, SCALING, STANDARD, BurstPlan, Contender, Replay, Timing, measure


class FakeStopwatch:
    """Each call takes as long as it says; the log keeps what ran."""

    def __init__(self) -> None:
        self.log: list[tuple[object, int]] = []

    def milliseconds(self, call, runs):
        self.log.append((call(), runs))
        return call()

    def relieve_host(self, call, milliseconds):
        return (call, "graph") if milliseconds < 0.01 else (call, "stream")


class CpuStopwatch(FakeStopwatch):
    """Every call really runs, and takes a millisecond."""

    def milliseconds(self, call, runs):
        call()
        return 1.0


def fixed(name: str, milliseconds: float, **options) -> Contender:
    return Contender(name, lambda: lambda: milliseconds, **options)


def broken(name: str, **options) -> Contender:
    def prepare():
        raise RuntimeError("no such kernel\nand more")

    return Contender(name, prepare, **options)


@pytest.mark.parametrize("milliseconds", [0.02, 0.5, 3.0, 12.0, 29.0, 31.0, 60.0])
def test_bursts_are_long_and_runs_many(milliseconds):
    runs = STANDARD.runs(milliseconds)
    assert STANDARD.bursts >= 7
    assert runs >= 30 or runs * milliseconds >= 30.0
    assert STANDARD.bursts * runs >= 30
    assert SCALING.bursts * SCALING.runs(milliseconds) >= 7


def test_contenders_take_turns_and_the_first_round_does_not_count():
    watch = FakeStopwatch()
    plan = BurstPlan(bursts=3, burst_ms=10.0, settle_ms=2.0, total_runs=3)
    found = measure([fixed("a", 1.0), fixed("b", 2.0)], plan, watch)
    assert found["a"].bursts == (1.0, 1.0, 1.0)
    assert found["b"].runs_per_burst == 5
    turns = watch.log[-16:]
    # Each turn is a settling run, then the burst; four rounds of two contenders.
    assert turns == [(1.0, 2), (1.0, 10), (2.0, 1), (2.0, 5)] * 4


def test_the_context_is_entered_around_every_run():
    entered = []

    @contextlib.contextmanager
    def context():
        entered.append(True)
        yield
        entered.pop()

    def prepare():
        assert entered
        return lambda: entered[0] and 1.0

    assert isinstance(measure([Contender("a", prepare, context)], QUICK, FakeStopwatch())["a"], Timing)
    assert not entered


def test_a_peer_that_fails_leaves_its_reason():
    found = measure([fixed("a", 1.0), broken("b")], QUICK, FakeStopwatch())
    assert found["b"] == "RuntimeError: no such kernel"
    assert found["a"].median == 1.0


def test_a_required_contender_that_fails_is_an_error():
    with pytest.raises(RuntimeError, match="no such kernel"):
        measure([broken("a", required=True), fixed("b", 1.0)], QUICK, FakeStopwatch())


def test_calls_that_the_host_holds_up_are_marked():
    assert measure([fixed("a", 0.001)], QUICK, FakeStopwatch())["a"].launch == "graph"


def test_median_and_spread():
    record = Timing((2.0, 1.0, 4.0), 10).to_json()
    assert (record["median_ms"], record["low_ms"], record["high_ms"]) == (2.0, 1.0, 4.0)
    assert record["spread_percent"] == 150.0
    assert set(record) == set(TIMING)


SMALL = Shape(12, 16, 40)


@pytest.mark.parametrize("operator", ["tra", "tda"])
@pytest.mark.parametrize("run", ["forward", "backward", "forward+backward"])
def test_a_row_on_the_cpu(operator, run):
    case = Case("random", SMALL, run, operator=operator, dtype="float32", peers=("math", "cudnn"))
    row = measure_row(case, Bench(quick=True, device="cpu", stopwatch=CpuStopwatch()))
    assert "error" not in row, row["error"]
    assert set(ROW) <= set(row)
    assert row["ratio"] == 1.0
    assert "unavailable" in row["results"]["cudnn"]
    assert 0.0 < row["density"] < 0.5


def test_a_row_with_a_density_has_its_beta():
    case = Case("random", Shape(12, 64, 512), FORWARD, dtype="float32", peers=("math",), density=0.1)
    row = measure_row(case, Bench(quick=True, device="cpu", stopwatch=CpuStopwatch()))
    assert row["density"] == pytest.approx(0.1, rel=0.02)
    assert 0.0 < row["beta"] < 1.0


def test_rows_without_their_inputs_are_skipped_and_rows_that_fail_say_so():
    bench = Bench(quick=True, device="cpu", stopwatch=CpuStopwatch())
    skipped = measure_row(Case("trained", Shape(12, 64, 64), FORWARD), bench)
    assert "--trained DIR" in skipped["skipped"]
    failed = measure_row(Case("planted-8", Shape(12, 64, 30), FORWARD), bench)
    assert "multiple of 8, got 30" in failed["error"]
    assert measure_row(Case("random", SMALL, FORWARD, dtype="float32", peers=("math",)), bench)["ratio"] == 1.0


def test_rows_of_one_claim_share_inputs_only_when_they_are_the_same():
    bench = Bench(device="cpu")
    one = Case("random", SMALL, FORWARD)
    first = bench.inputs(one)
    assert bench.inputs(one).v is first.v
    assert len(bench.inputs(Case("random", SMALL, FORWARD, operator="tda")).q) == 2
    other = bench.inputs(Case("dense", SMALL, FORWARD))
    assert other.beta[0].item() == 0.0
    assert bench.inputs(one).beta[0].item() == 1.0


def test_claims_use_what_exists():
    for name, claim in CLAIMS.items():
        assert claim.cases, name
        for case in claim.cases:
            assert hasattr(torch, case.dtype)
            assert case.regime != "trained" or (case.shape.dim == 64 and case.shape.length <= 4096)
            assert "naive" not in case.peers or case.shape.length <= 4096


def test_a_replay_keeps_the_tensors_that_its_graph_reads():
    saved = torch.zeros(3)
    freed = weakref.ref(saved)
    replays = []

    class Graph:
        def replay(self) -> None:
            replays.append(1)

    def call(tensor=saved) -> torch.Tensor:
        return tensor

    replay = Replay(Graph(), call)
    del saved, call
    gc.collect()
    replay()
    assert freed() is not None
    assert replays == [1]
