"""The operators as functions."""

from __future__ import annotations

import math
from typing import Literal, overload

import torch
from torch import Tensor

from threshold_attention.screening import Screening


def per_head(name: str, value: float | Tensor, q: Tensor) -> Tensor:
    """``value`` as a tensor on q's device; tensors pass through and are checked by the operator.

    Raises:
        ValueError: ``value`` is a number that is not finite.
        TypeError: ``value`` is neither a number nor a tensor, or q is not a tensor.
    """
    if not isinstance(q, Tensor):
        raise TypeError(f"q: expected a tensor, got {type(q).__name__}")
    if isinstance(value, Tensor):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected a number or a tensor, got {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name}: expected a finite number, got {value}")
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return torch.full((), float(value), dtype=dtype, device=q.device)


@overload
def threshold_rela(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    beta: float | Tensor = ...,
    kappa: float = ...,
    power: float = ...,
    normalize: bool = ...,
    return_statistics: Literal[False] = ...,
    screening: Screening = ...,
    screening_counters: Tensor | None = ...,
) -> Tensor: ...


@overload
def threshold_rela(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    beta: float | Tensor = ...,
    kappa: float = ...,
    power: float = ...,
    normalize: bool = ...,
    return_statistics: Literal[True],
    screening: Screening = ...,
    screening_counters: Tensor | None = ...,
) -> tuple[Tensor, Tensor]: ...


def threshold_rela(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    beta: float | Tensor = 1.0,
    kappa: float = 1.0,
    power: float = 2.0,
    normalize: bool = True,
    return_statistics: bool = False,
    screening: Screening = "automatic",
    screening_counters: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Threshold rectified attention (TRA), causal.

    ``u_i = sum_{j <= i} max(0, <q_i/|q_i|, k_j/|k_j|> - tau_i) ** power * v_j`` with
    ``tau_i = beta * sqrt(2 * max(0, ln((i + 1) / kappa)) / D)``. A row without a survivor is 0. No RMSNorm is applied.

    Args:
        q: (B, H_q, T_q, D), float32, bfloat16, float16, or float64 on the CPU; 1 <= D <= 256.
        k: (B, H_kv, T_k, D), H_q a multiple of H_kv, T_q <= T_k; query row i stands at position T_k - T_q + i.
        v: (B, H_kv, T_k, D_v), D_v = D or 2 D.
        beta: number, 0-d or (H_q,) tensor; differentiable. Any finite value; below 0 more than half of all pairs live.
        kappa: constant > 0: the expected number of spurious survivors a row may have.
        power: constant >= 1.
        normalize: divide q and k by ``max(norm, 1e-12)`` first; otherwise scores are plain inner products.
        return_statistics: also return the number of survivors of every row.
        screening: which heads the kernels for Hopper GPUs screen before they compute: ``"always"`` all, ``"never"``
            none, ``"automatic"`` those for which the counters do not say that it does not pay. No output bit depends
            on it; other kernels ignore it.
        screening_counters: what the last call counted, int32 (H_q, 7) on q's device, replaced by what this one counts;
            see :func:`threshold_attention.screening_counters`. Calls of other kernels, the CPU's too, leave zeros.

    Returns:
        (B, H_q, T_q, D_v) in q's dtype; with ``return_statistics`` a pair of that and int32 (B, H_q, T_q).

    Raises:
        ValueError, RuntimeError: a wrong shape, dtype, device or value; the message names argument, value and what
            was expected.
    """
    output, survivors = torch.ops.threshold_attention.threshold_rela(
        q,
        k,
        v,
        per_head("beta", beta, q),
        kappa=float(kappa),
        power=float(power),
        normalize=normalize,
        return_statistics=return_statistics,
        screening=screening,
        screening_counters=screening_counters,
    )
    return (output, survivors) if return_statistics else output


@overload
def differential_threshold_rela(
    q1: Tensor,
    k1: Tensor,
    q2: Tensor,
    k2: Tensor,
    v: Tensor,
    *,
    lam: float | Tensor,
    beta: float | Tensor = ...,
    kappa: float = ...,
    power: float = ...,
    normalize: bool = ...,
    return_statistics: Literal[False] = ...,
    screening: Screening = ...,
    screening_counters: Tensor | None = ...,
) -> Tensor: ...


@overload
def differential_threshold_rela(
    q1: Tensor,
    k1: Tensor,
    q2: Tensor,
    k2: Tensor,
    v: Tensor,
    *,
    lam: float | Tensor,
    beta: float | Tensor = ...,
    kappa: float = ...,
    power: float = ...,
    normalize: bool = ...,
    return_statistics: Literal[True],
    screening: Screening = ...,
    screening_counters: Tensor | None = ...,
) -> tuple[Tensor, Tensor]: ...


def differential_threshold_rela(
    q1: Tensor,
    k1: Tensor,
    q2: Tensor,
    k2: Tensor,
    v: Tensor,
    *,
    lam: float | Tensor,
    beta: float | Tensor = 1.0,
    kappa: float = 1.0,
    power: float = 2.0,
    normalize: bool = True,
    return_statistics: bool = False,
    screening: Screening = "automatic",
    screening_counters: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """Threshold differential attention (TDA), causal: the weights of two views, ``a1 - clamp(lam, 0, 1) * a2``.

    Both views have the weights of :func:`threshold_rela` with a shared ``beta``, ``kappa``, ``power`` and ``v``; both
    are computed in one pass. No RMSNorm is applied.

    Args:
        q1, q2: (B, H_q, T_q, D), see :func:`threshold_rela`.
        k1, k2: (B, H_kv, T_k, D).
        v: (B, H_kv, T_k, D_v), D_v = D or 2 D.
        lam: number, 0-d or (H_q,) tensor, used as ``clamp(lam, 0, 1)``; its gradient is 1 on the closed interval and
            0 outside.
        beta, kappa, power, normalize, screening, screening_counters: see :func:`threshold_rela`.
        return_statistics: also return, for every row, the number of pairs with a non-zero weight in any view.

    Returns:
        (B, H_q, T_q, D_v) in q1's dtype; with ``return_statistics`` a pair of that and int32 (B, H_q, T_q).

    Raises:
        ValueError, RuntimeError: a wrong shape, dtype, device or value; the message names argument, value and what
            was expected.
    """
    output, survivors = torch.ops.threshold_attention.differential_threshold_rela(
        q1,
        k1,
        q2,
        k2,
        v,
        per_head("lam", lam, q1),
        per_head("beta", beta, q1),
        kappa=float(kappa),
        power=float(power),
        normalize=normalize,
        return_statistics=return_statistics,
        screening=screening,
        screening_counters=screening_counters,
    )
    return (output, survivors) if return_statistics else output
