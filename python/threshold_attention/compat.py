"""Names, argument order and semantics of the published Triton code, on the operators of this package.

Differences, all of them repairs:

- ``beta`` may be a tensor and receives a gradient; the published code reads it on the host and returns none.
- With ``beta < 0`` masked keys of the future contribute nothing; the published code gives them the score 0, so that
  they leak into the output. For ``beta >= 0`` both agree.
- ``r ** p`` for p other than 1 and 2 is exact; the published code computes ``exp(p * log(r + 1e-10))``.
- Any strides are right; the published code is right for ``stride(0) == H * stride(1)`` only.
- Shapes are those of :func:`threshold_attention.threshold_rela`: no power-of-two head dimension, T_q <= T_k, grouped
  heads. Inputs keep their dtype (sums run in float32); the published code computes in float32 with TF32 products.
"""

from __future__ import annotations

from torch import Tensor

from threshold_attention.functional import differential_threshold_rela, threshold_rela

__all__ = ["differential_threshold_rela_triton", "threshold_rela_triton"]


def threshold_rela_triton(q: Tensor, k: Tensor, v: Tensor, beta: float | Tensor, relu_power: float = 2.0) -> Tensor:
    """TRA as published: it does **not** normalize q and k.

    Args:
        q, k, v: (B, H, T, D).
        beta: threshold scale, number, 0-d or (H,) tensor.
        relu_power: power of the rectifier, >= 1.
    """
    return threshold_rela(q, k, v, beta=beta, power=relu_power, normalize=False)


def differential_threshold_rela_triton(
    q1: Tensor,
    q2: Tensor,
    k1: Tensor,
    k2: Tensor,
    v: Tensor,
    beta: float | Tensor,
    lambda_param: float | Tensor,
    relu_power: float = 2.0,
    normalize: bool = True,
) -> Tensor:
    """TDA as published. Note the order: both queries come first.

    Args:
        q1, q2, k1, k2, v: (B, H, T, D).
        beta: threshold scale, number, 0-d or (H,) tensor.
        lambda_param: weight of the second view, clamped to [0, 1]; number, 0-d or (H,) tensor.
        relu_power: power of the rectifier, >= 1.
        normalize: L2-normalize queries and keys.
    """
    return differential_threshold_rela(
        q1, k1, q2, k2, v, lam=lambda_param, beta=beta, power=relu_power, normalize=normalize
    )
