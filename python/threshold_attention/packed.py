"""The operators on documents packed along the length, in the layout of flash-attention's varlen functions."""

from __future__ import annotations

import numbers
from typing import Literal, overload

import torch
from torch import Tensor

from threshold_attention.functional import per_head
from threshold_attention.screening import Screening


def _length(name: str, value: int | None) -> int | None:
    if value is None or (isinstance(value, (int, torch.SymInt)) and not isinstance(value, bool)):
        return value
    if isinstance(value, numbers.Integral) and not isinstance(value, bool):  # one of NumPy's
        return int(value)
    raise TypeError(f"{name}: expected an int or None, got {type(value).__name__}")


@overload
def threshold_rela_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = ...,
    max_seqlen_k: int | None = ...,
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
def threshold_rela_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = ...,
    max_seqlen_k: int | None = ...,
    *,
    beta: float | Tensor = ...,
    kappa: float = ...,
    power: float = ...,
    normalize: bool = ...,
    return_statistics: Literal[True],
    screening: Screening = ...,
    screening_counters: Tensor | None = ...,
) -> tuple[Tensor, Tensor]: ...


def threshold_rela_varlen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    *,
    beta: float | Tensor = 1.0,
    kappa: float = 1.0,
    power: float = 2.0,
    normalize: bool = True,
    return_statistics: bool = False,
    screening: Screening = "automatic",
    screening_counters: Tensor | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """:func:`threshold_rela` inside every one of several documents that are packed along the length.

    Document d owns the rows ``cu_seqlens_q[d]`` to ``cu_seqlens_q[d + 1] - 1`` of q and of the output, and the rows of
    k and v that ``cu_seqlens_k`` says alike. The formula is that of :func:`threshold_rela` with positions that count
    from the document's first key: with T_q queries and T_k keys its query row i stands at position T_k - T_q + i. The
    gradient of ``beta`` is a sum over documents.

    Args:
        q: (total_q, H_q, D), float32, bfloat16, float16, or float64 on the CPU.
        k: (total_k, H_kv, D), H_q a multiple of H_kv.
        v: (total_k, H_kv, D_v), D_v = D or 2 D.
        cu_seqlens_q, cu_seqlens_k: int32 (documents + 1,) on q's device: 0 first, never decreasing (equal neighbours
            are an empty document), total_q and total_k last. No document has more queries than keys. On the CPU this
            is checked; on CUDA the host does not read them, and wrong values are undefined behaviour, except that the
            last may be less than the total: the rows behind are then not written.
        max_seqlen_q, max_seqlen_k: upper bounds of the documents' lengths, in rows. Without max_seqlen_k the total
            serves, without max_seqlen_q max_seqlen_k; larger values mean the same as these. They bound the size of
            what is saved for the backward and, on CUDA, launches and scratch memory, so give them where they are
            known.
        beta, kappa, power, normalize, return_statistics, screening, screening_counters: see :func:`threshold_rela`.

    Returns:
        (total_q, H_q, D_v) in q's dtype; with ``return_statistics`` a pair of that and int32 (H_q, total_q).

    Raises:
        ValueError, RuntimeError: a wrong shape, dtype, device or value; the message names argument, value and what
            was expected. Shapes are given as (1, heads, total length, dim) there.
        TypeError: a parameter or a length of the wrong type.
    """
    output, survivors = torch.ops.threshold_attention.threshold_rela_varlen(
        q,
        k,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        per_head("beta", beta, q),
        _length("max_seqlen_q", max_seqlen_q),
        _length("max_seqlen_k", max_seqlen_k),
        kappa=float(kappa),
        power=float(power),
        normalize=normalize,
        return_statistics=return_statistics,
        screening=screening,
        screening_counters=screening_counters,
    )
    return (output, survivors) if return_statistics else output


@overload
def differential_threshold_rela_varlen(
    q1: Tensor,
    k1: Tensor,
    q2: Tensor,
    k2: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = ...,
    max_seqlen_k: int | None = ...,
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
def differential_threshold_rela_varlen(
    q1: Tensor,
    k1: Tensor,
    q2: Tensor,
    k2: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = ...,
    max_seqlen_k: int | None = ...,
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


def differential_threshold_rela_varlen(
    q1: Tensor,
    k1: Tensor,
    q2: Tensor,
    k2: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
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
    """:func:`differential_threshold_rela` inside every one of several documents that are packed along the length.

    Documents, offsets and errors are those of :func:`threshold_rela_varlen`; the weights are ``a1 - clamp(lam, 0, 1) *
    a2`` of two views.

    Args:
        q1, q2: (total_q, H_q, D).
        k1, k2: (total_k, H_kv, D).
        v: (total_k, H_kv, D_v), D_v = D or 2 D.
        cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k: see :func:`threshold_rela_varlen`.
        lam, beta, kappa, power, normalize, return_statistics, screening, screening_counters: see
            :func:`differential_threshold_rela`.

    Returns:
        (total_q, H_q, D_v) in q1's dtype; with ``return_statistics`` a pair of that and int32 (H_q, total_q).

    Raises:
        ValueError, RuntimeError, TypeError: see :func:`threshold_rela_varlen`.
    """
    output, survivors = torch.ops.threshold_attention.differential_threshold_rela_varlen(
        q1,
        k1,
        q2,
        k2,
        v,
        cu_seqlens_q,
        cu_seqlens_k,
        per_head("lam", lam, q1),
        per_head("beta", beta, q1),
        _length("max_seqlen_q", max_seqlen_q),
        _length("max_seqlen_k", max_seqlen_k),
        kappa=float(kappa),
        power=float(power),
        normalize=normalize,
        return_statistics=return_statistics,
        screening=screening,
        screening_counters=screening_counters,
    )
    return (output, survivors) if return_statistics else output
