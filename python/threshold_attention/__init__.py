"""Threshold Differential Attention: sparse, signed attention without a softmax (arXiv 2601.12145).

- :func:`threshold_rela` (TRA, one view) and :func:`differential_threshold_rela` (TDA, two views): the operators.
- :func:`threshold_rela_varlen` and :func:`differential_threshold_rela_varlen`: the same on packed documents.
- :class:`ThresholdDifferentialAttention`: a drop-in attention layer.
- :func:`screening_counters` and :func:`screening_report`: which heads the kernels for Hopper GPUs screened.
- :mod:`threshold_attention.compat`: names, argument order and semantics of the published code.
- :mod:`threshold_attention.reference`: the same functions in plain PyTorch, any dtype and device.

With the weights ``a_ij = max(0, s_ij - tau_i) ** power``, scores ``s_ij`` of L2-normalized queries and keys, and the
threshold ``tau_i = beta * sqrt(2 * max(0, ln((i + 1) / kappa)) / D)`` for the 0-indexed position ``i``, TRA computes
``sum_j a_ij v_j`` and TDA ``sum_j (a1_ij - lam * a2_ij) v_j`` over the keys ``j <= i``. Most weights are exactly zero.
"""

from __future__ import annotations

from threshold_attention import compat, reference
from threshold_attention._library import load_library
from threshold_attention.functional import differential_threshold_rela, threshold_rela
from threshold_attention.module import ThresholdDifferentialAttention
from threshold_attention.packed import differential_threshold_rela_varlen, threshold_rela_varlen
from threshold_attention.screening import HeadScreening, screening_counters, screening_report

load_library()

__all__ = [
    "HeadScreening",
    "ThresholdDifferentialAttention",
    "compat",
    "differential_threshold_rela",
    "differential_threshold_rela_varlen",
    "reference",
    "screening_counters",
    "screening_report",
    "threshold_rela",
    "threshold_rela_varlen",
]
__version__ = "0.1.0"
