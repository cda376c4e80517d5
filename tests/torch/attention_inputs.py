"""Random inputs of the operators."""

from __future__ import annotations

import torch
from torch import Tensor

GRADIENT_NAMES = ("q1", "k1", "q2", "k2", "v", "beta", "lam")


def random_inputs(
    *,
    batch: int = 2,
    query_heads: int = 4,
    key_heads: int = 4,
    query_length: int = 20,
    key_length: int = 20,
    dim: int = 16,
    value_dim: int | None = None,
    beta: float = 0.4,
    dtype: torch.dtype = torch.float32,
    requires_grad: bool = False,
    seed: int = 0,
) -> dict[str, Tensor]:
    """q1, k1, q2, k2, v, beta, lam; beta and lam hold one value per query head."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    parameter = torch.float64 if dtype == torch.float64 else torch.float32
    inputs = {
        "q1": normal(batch, query_heads, query_length, dim),
        "k1": normal(batch, key_heads, key_length, dim),
        "q2": normal(batch, query_heads, query_length, dim),
        "k2": normal(batch, key_heads, key_length, dim),
        "v": normal(batch, key_heads, key_length, value_dim or dim),
        "beta": torch.linspace(beta, beta + 0.1, query_heads, dtype=parameter),
        "lam": torch.linspace(0.3, 0.7, query_heads, dtype=parameter),
    }
    return {name: x.requires_grad_(requires_grad) for name, x in inputs.items()}


def one_view(inputs: dict[str, Tensor]) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Tensor]]:
    """Arguments of threshold_rela."""
    return (inputs["q1"], inputs["k1"], inputs["v"]), {"beta": inputs["beta"]}


def two_views(inputs: dict[str, Tensor]) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Arguments of differential_threshold_rela."""
    return tuple(inputs[name] for name in ("q1", "k1", "q2", "k2", "v")), {
        "beta": inputs["beta"],
        "lam": inputs["lam"],
    }
