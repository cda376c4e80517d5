"""Inputs of the benchmark. A speed of sparse attention means nothing without the regime of its inputs.

random:    iid normal q, k, v; beta 1.
trained:   q, k, v of one layer of a trained TDA model (raw bfloat16 files); beta 1.0352, lambda 0.3789.
planted-8: T/8 iid unit directions per head; a random permutation gives each direction 8 keys,
           key = unit(direction + 0.2 unit noise); each query takes a random direction in the same way. Nearly every
           64 x 128 tile holds a survivor, and hardly any pair survives.
dense:     as random with beta 0: half of all causal pairs survive.

The same seed, device and shape always give the same inputs.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

REGIMES = ("random", "trained", "planted-8", "dense")
SEED = 1337
KEYS_PER_DIRECTION = 8
TRAINED_HEADS, TRAINED_LENGTH, TRAINED_DIM = 12, 4096, 64
TRAINED_BETA, TRAINED_LAMBDA = 1.0352, 0.3789


@dataclasses.dataclass(frozen=True)
class Shape:
    """B·H = ``heads`` sequences of ``length`` tokens with ``dim`` channels."""

    heads: int
    dim: int
    length: int

    def split(self) -> tuple[int, int]:
        """(B, H) with B·H = heads: 12 heads as in the trained model where that divides, else 16, else all."""
        per_batch = next((n for n in (TRAINED_HEADS, 16) if self.heads % n == 0), self.heads)
        return self.heads // per_batch, per_batch

    @property
    def pairs(self) -> int:
        """Causal pairs of all heads, i.e. scores of one view."""
        return self.heads * self.length * (self.length + 1) // 2


@dataclasses.dataclass
class Inputs:
    """Of each view q, k (B, H, T, D); v (B, H, T, D) is shared; beta and lam are fp32 (H,)."""

    q: list[Tensor]
    k: list[Tensor]
    v: Tensor
    beta: Tensor
    lam: Tensor

    def of_view(self, view: int) -> Inputs:
        """The inputs with view 1 or 2 alone."""
        return dataclasses.replace(self, q=[self.q[view - 1]], k=[self.k[view - 1]])


def make_inputs(
    regime: str,
    shape: Shape,
    dtype: torch.dtype,
    device: torch.device | str,
    *,
    views: int = 2,
    trained: Path | None = None,
) -> Inputs:
    """The inputs of ``regime`` in ``dtype``.

    Raises:
        ValueError: an unknown regime, or a shape that the regime does not have.
        FileNotFoundError: the regime is trained, and ``trained`` is no folder with its files.
    """
    if regime not in REGIMES:
        raise ValueError(f"regime: expected one of {', '.join(REGIMES)}, got {regime!r}")
    batch, heads = shape.split()
    generator = torch.Generator(device).manual_seed(SEED)

    def normal() -> Tensor:
        size = (batch, heads, shape.length, shape.dim)
        return torch.randn(size, generator=generator, device=device).to(dtype)

    beta, lam = (0.0 if regime == "dense" else 1.0), 0.5
    if regime == "trained":
        beta, lam = TRAINED_BETA, TRAINED_LAMBDA
        q = [_read_trained(trained, f"q{n + 1}", shape, dtype, device) for n in range(views)]
        k = [_read_trained(trained, f"k{n + 1}", shape, dtype, device) for n in range(views)]
        v = _read_trained(trained, "v", shape, dtype, device)
    elif regime == "planted-8":
        planted = [plant(shape, generator, device) for _ in range(views)]
        q = [pair[0].to(dtype) for pair in planted]
        k = [pair[1].to(dtype) for pair in planted]
        v = normal()
    else:
        v = normal()
        q, k = [normal() for _ in range(views)], [normal() for _ in range(views)]
    return Inputs(
        q,
        k,
        v,
        beta=torch.full((heads,), beta, device=device),
        lam=torch.full((heads,), lam, device=device),
    )


def plant(shape: Shape, generator: torch.Generator, device: torch.device | str) -> tuple[Tensor, Tensor]:
    """Queries and keys of planted-8, fp32 (B, H, T, D) of unit norm; see the head of this file.

    Raises:
        ValueError: the length is no multiple of 8, so that directions could not all have 8 keys.
    """
    if shape.length % KEYS_PER_DIRECTION != 0:
        raise ValueError(f"length: planted-8 expects a multiple of {KEYS_PER_DIRECTION}, got {shape.length}")
    count = shape.length // KEYS_PER_DIRECTION

    def unit(rows: int) -> Tensor:
        size = (shape.heads, rows, shape.dim)
        return normalize(torch.randn(size, generator=generator, device=device), dim=-1)

    directions = unit(count)

    def near(choice: Tensor) -> Tensor:
        chosen = directions.gather(1, choice[..., None].expand(-1, -1, shape.dim))
        rows = normalize(chosen + 0.2 * unit(shape.length), dim=-1)
        return rows.view(*shape.split(), shape.length, shape.dim)

    # The order of random numbers is a random permutation; its remainder names each direction 8 times.
    order = torch.rand(shape.heads, shape.length, generator=generator, device=device, dtype=torch.float64)
    keys = near(order.argsort(dim=-1).remainder(count))
    queries = near(torch.randint(count, (shape.heads, shape.length), generator=generator, device=device))
    return queries, keys


def _read_trained(
    folder: Path | None, name: str, shape: Shape, dtype: torch.dtype, device: torch.device | str
) -> Tensor:
    """The first ``length`` tokens of a file, its 12 heads repeated over the batch."""
    if shape.heads % TRAINED_HEADS != 0 or shape.dim != TRAINED_DIM or shape.length > TRAINED_LENGTH:
        raise ValueError(
            f"shape: trained inputs have a multiple of {TRAINED_HEADS} heads, D = {TRAINED_DIM} and "
            f"T <= {TRAINED_LENGTH}, got {shape.heads}, {shape.dim}, {shape.length}"
        )
    if folder is None:
        raise FileNotFoundError("trained inputs need --trained DIR, the folder of layer4_*.bf16")
    path = folder / f"layer4_{name}_1x{TRAINED_HEADS}x{TRAINED_LENGTH}x{TRAINED_DIM}.bf16"
    if not path.is_file():
        raise FileNotFoundError(f"trained inputs: {path} is missing")
    raw, expected = bytearray(path.read_bytes()), 2 * TRAINED_HEADS * TRAINED_LENGTH * TRAINED_DIM
    if len(raw) != expected:
        raise ValueError(f"{path}: expected {expected} bytes of bfloat16, got {len(raw)}")
    whole = torch.frombuffer(raw, dtype=torch.bfloat16).view(1, TRAINED_HEADS, TRAINED_LENGTH, TRAINED_DIM)
    part = whole[:, :, : shape.length].to(device, dtype)
    return part.repeat(shape.heads // TRAINED_HEADS, 1, 1, 1)
