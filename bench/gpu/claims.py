"""The claims: what is measured, against whom, and with what goal. Data only."""

from __future__ import annotations

import dataclasses

from bench.gpu.contenders import BACKWARD, BOTH, FORWARD
from bench.gpu.goals import Goal
from bench.gpu.inputs import Shape

HEADS = 48
TOKENS = 786432  # B·H·T where it is held constant
DENSITIES = (0.0, 0.001, 0.01, 0.1, 0.5)
# Table 5 of arXiv 2601.12145: TRA over FlashAttention-2 forward, bf16, the paper's own kernel and GPU.
PAPER_OVER_FLASH = {512: 1.09, 1024: 0.89, 2048: 0.95, 4096: 0.98, 8192: 1.13, 16384: 1.25, 32768: 1.29, 65536: 1.24}
PAPER_FP32_SPEED, PAPER_FP32_MEMORY = 1.57, 0.65


@dataclasses.dataclass(frozen=True)
class Case:
    """A row: one kind of inputs, one of our operators, its peers."""

    regime: str
    shape: Shape
    run: str
    goal: Goal | None = None
    operator: str = "tra"
    view: int = 1  # which view TRA gets
    dtype: str = "bfloat16"
    peers: tuple[str, ...] = ("cudnn", "flash")  # the ratio is against the first
    quantity: str = "time"  # or "memory" (peak beyond inputs, output and gradients), "total memory"
    density: float | None = None  # beta is searched so that this share of pairs survives
    quoted: float | None = None  # the ratio that the paper prints
    scaling: bool = False  # fewer runs of long calls

    @property
    def title(self) -> str:
        words = [self.regime if self.density is None else f"{self.regime}, density {100 * self.density:g} %"]
        if self.operator == "tda":
            words.append("two views against one softmax")
        elif self.regime == "trained":
            words.append(f"view {self.view}")
        return ", ".join(words)


@dataclasses.dataclass(frozen=True)
class Claim:
    title: str
    cases: tuple[Case, ...]


def at_least(bound: float) -> Goal:
    return Goal(bound)


def at_most(bound: float) -> Goal:
    return Goal(bound, at_most=True)


def _forward() -> tuple[Case, ...]:
    trained, dense128 = Shape(HEADS, 64, 4096), Shape(32, 128, 16384)
    return (
        Case("trained", trained, FORWARD, at_least(3.0), view=1),
        Case("trained", trained, FORWARD, at_least(3.0), view=2),
        Case("random", Shape(HEADS, 64, 16384), FORWARD, at_least(3.7)),
        Case("random", Shape(HEADS, 64, 65536), FORWARD, at_least(5.0)),
        Case("planted-8", Shape(HEADS, 64, 16384), FORWARD, at_least(2.0)),
        Case("dense", Shape(HEADS, 64, 16384), FORWARD, at_least(1.4)),
        Case("dense", dense128, FORWARD, at_least(1.15)),
        Case("random", dense128, FORWARD, at_least(3.3)),
    )


def _backward() -> tuple[Case, ...]:
    trained, long = Shape(HEADS, 64, 4096), Shape(HEADS, 64, 16384)
    return (
        Case("trained", trained, BACKWARD, at_least(6.0), view=1),
        Case("trained", trained, BACKWARD, at_least(6.0), view=2),
        Case("random", long, BACKWARD, at_least(25.0)),
        Case("planted-8", long, BACKWARD, at_least(8.0)),
        Case("dense", long, BACKWARD, at_least(1.0)),
        Case("dense", Shape(32, 128, 16384), BACKWARD, at_least(1.0)),
    )


def _short() -> tuple[Case, ...]:
    lengths, runs = (512, 1024, 2048), (FORWARD, BACKWARD)
    return tuple(Case("trained", Shape(TOKENS // t, 64, t), run, at_least(1.0)) for t in lengths for run in runs)


def _fp32(quantity: str) -> tuple[Case, ...]:
    goals = {"random": at_least(1.6), "trained": at_least(4.0)}
    return tuple(
        Case(
            regime,
            Shape(HEADS, 64, length),
            BOTH,
            goals[regime] if quantity == "time" else at_most(PAPER_FP32_MEMORY),
            dtype="float32",
            peers=("efficient", "math"),
            quantity=quantity,
        )
        for regime in ("random", "trained")
        for length in (512, 1024, 2048, 4096)
    )


def _memory() -> tuple[Case, ...]:
    shapes = (("trained", Shape(HEADS, 64, 4096)), ("dense", Shape(HEADS, 64, 4096)), ("random", Shape(32, 128, 16384)))
    return tuple(
        Case(regime, shape, run, at_most(bound), operator=operator, quantity="memory")
        for regime, shape in shapes
        for run in (FORWARD, BOTH)
        for operator, bound in (("tra", 1.0), ("tda", 2.0))
    )


def _length_growth() -> tuple[Case, ...]:
    """B·H·T is constant up to 16k, so that short sequences fill the device as well; from there on B·H is."""
    lengths = [1024 * 2**n for n in range(8)]
    return tuple(
        Case("random", Shape(max(HEADS, TOKENS // t), 64, t), run, peers=("cudnn",), scaling=True)
        for run in (FORWARD, BACKWARD)
        for t in lengths
    )


CLAIMS: dict[str, Claim] = {
    "forward": Claim("Forward, bf16, causal, against SDPA cuDNN", _forward()),
    "backward": Claim("Backward, bf16, causal, against cuDNN's backward", _backward()),
    "tda": Claim(
        "TDA, two views, against one softmax attention",
        tuple(
            Case("trained", Shape(HEADS, 64, 4096), run, at_least(2.2) if run == BOTH else None, operator="tda")
            for run in (BOTH, FORWARD, BACKWARD)
        ),
    ),
    "short": Claim(f"Short sequences, B·H·T = {TOKENS}, bf16, against SDPA cuDNN", _short()),
    "fp32": Claim(
        "fp32 with TF32 off for all, forward and backward together, against the fused SDPA "
        f"(the paper's Figure 6: {PAPER_FP32_SPEED} times)",
        _fp32("time"),
    ),
    "fp32-memory": Claim(
        "fp32 peak memory of forward and backward over that of the fused SDPA: in all, as the paper's Figure 6 counts "
        f"({100 * PAPER_FP32_MEMORY:g} %), and beyond inputs, output and gradients",
        (*_fp32("total memory"), *_fp32("memory")),
    ),
    "memory": Claim("Peak memory beyond inputs, output and gradients over that of one SDPA cuDNN, bf16", _memory()),
    "flash": Claim(
        "Forward against SDPA flash (FlashAttention-2), bf16, beside what the paper prints for its own kernel and GPU",
        tuple(
            Case("random", Shape(HEADS, 64, length), FORWARD, peers=("flash",), quoted=quoted)
            for length, quoted in PAPER_OVER_FLASH.items()
        ),
    ),
    "length": Claim("How the cost grows with T, random", _length_growth()),
    "density": Claim(
        "How the cost grows with density: random inputs, beta chosen for the share of pairs that survive",
        tuple(
            Case("random", Shape(HEADS, 64, 8192), run, density=density, peers=("cudnn",))
            for run in (FORWARD, BACKWARD)
            for density in DENSITIES
        ),
    ),
    "naive": Claim(
        "Against TRA in plain PyTorch under torch.compile, bf16",
        tuple(
            Case("trained", Shape(HEADS, 64, length), run, peers=("naive",))
            for length in (1024, 4096)
            for run in (FORWARD, BACKWARD)
        ),
    ),
    "flex": Claim(
        "Against TRA expressed in FlexAttention under torch.compile, bf16",
        (
            Case("trained", Shape(HEADS, 64, 4096), FORWARD, peers=("flex",)),
            Case("trained", Shape(HEADS, 64, 4096), BACKWARD, peers=("flex",)),
            Case("random", Shape(HEADS, 64, 16384), FORWARD, peers=("flex",)),
        ),
    ),
}
LONGEST_QUICK = 16384
