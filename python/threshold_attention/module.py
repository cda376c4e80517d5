"""Threshold differential attention as a layer."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from threshold_attention.functional import differential_threshold_rela
from threshold_attention.rotary_embedding import apply_rotary_embedding
from threshold_attention.screening import Screening, screening_counters


class HeadNorm(nn.Module):
    """RMSNorm over the last dimension with a gain of its own for every head.

    ``y = weight * x / sqrt(mean(x ** 2) + eps)`` for x of shape (B, H, T, D) and weight (H, D), computed in float32.
    A row of zeros (no survivor) stays zero.
    """

    def __init__(self, n_heads: int, dim: int, *, eps: float = 1e-6, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(n_heads, dim, device=device))

    def forward(self, x: Tensor) -> Tensor:
        wide = x if x.dtype == torch.float64 else x.float()
        scale = (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return (self.weight.unsqueeze(1) * (wide * scale)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.weight.shape[0]}, {self.weight.shape[1]}, eps={self.eps}"


class ThresholdDifferentialAttention(nn.Module):
    """Causal self-attention by TDA: (B, T, d_model) -> (B, T, d_model).

    Projections of two views' queries and keys and one value, rotary embedding, the operator
    :func:`threshold_attention.differential_threshold_rela`, RMSNorm per head, output projection. The defaults are those
    of the language model of this project, and so are the names in ``state_dict()``: ``query1.weight``, ``key1.weight``,
    ``query2.weight``, ``key2.weight``, ``value.weight``, ``output.weight``, ``head_norm.weight``, ``beta``, ``lambda``.

    ``beta`` and ``lambda`` are float32 of shape (H,). Lambda is used as ``clamp(lambda, 0, 1)``; a step of the
    optimizer may carry it outside, where its gradient is 0, so every forward in training projects it back first (see
    :meth:`project_`). Exclude ``beta``, ``lambda`` and ``head_norm.weight`` from weight decay.

    Args:
        d_model: width of the input and the output.
        n_heads: heads of width D = d_model / n_heads.
        n_kv_heads: heads of keys and values; fewer than n_heads is grouped-query attention. Default: n_heads.
        view_heads: ``"full"`` gives each view n_heads heads (2 d_model^2 more weights than softmax attention);
            ``"halved"`` gives n_heads / 2 heads whose values are 2 D wide (as many weights as softmax attention).
        beta, lam: values at the start.
        learn_beta, learn_lam: parameters when true, buffers otherwise.
        kappa, power: see :func:`threshold_attention.threshold_rela`.
        normalize: L2-normalize queries and keys.
        rope_theta: base of the rotary embedding; None switches it off.
        head_norm_eps: epsilon of the RMSNorm; a row with few survivors has a mean square near 1e-6, so it matters.
        bias: biases in the projections.
        screening: see :func:`threshold_attention.threshold_rela`. The counters are the buffer ``screening_counters``,
            which is not part of ``state_dict()``; :func:`threshold_attention.screening_report` reads them.
        device, dtype: of the projections.

    Raises:
        ValueError: sizes that do not divide, or an unknown ``view_heads`` or ``screening``.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        *,
        n_kv_heads: int | None = None,
        view_heads: Literal["full", "halved"] = "full",
        beta: float = 1.0,
        lam: float = 0.5,
        learn_beta: bool = True,
        learn_lam: bool = True,
        kappa: float = 1.0,
        power: float = 2.0,
        normalize: bool = True,
        rope_theta: float | None = 10_000.0,
        head_norm_eps: float = 1e-6,
        bias: bool = False,
        screening: Screening = "automatic",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if d_model < 1 or n_heads < 1 or d_model % n_heads:
            raise ValueError(f"n_heads: expected a divisor of d_model = {d_model}, got {n_heads}")
        if view_heads not in ("full", "halved"):
            raise ValueError(f"view_heads: expected 'full' or 'halved', got {view_heads!r}")
        if screening not in ("automatic", "always", "never"):
            raise ValueError(f"screening: expected 'automatic', 'always' or 'never', got {screening!r}")
        self.head_dim = d_model // n_heads
        if view_heads == "halved" and n_heads % 2:
            raise ValueError(f"n_heads: expected an even number with view_heads='halved', got {n_heads}")
        self.n_heads = n_heads // 2 if view_heads == "halved" else n_heads
        self.value_dim = 2 * self.head_dim if view_heads == "halved" else self.head_dim
        self.n_kv_heads = self.n_heads if n_kv_heads is None else n_kv_heads
        if self.n_kv_heads < 1 or self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_kv_heads: expected a divisor of the {self.n_heads} query heads, got {n_kv_heads}")
        if rope_theta is not None and self.head_dim % 2:
            raise ValueError(f"rope_theta: expected None for the odd head dimension {self.head_dim}, got {rope_theta}")
        self.d_model = d_model
        self.view_heads = view_heads
        self.kappa = kappa
        self.power = power
        self.normalize = normalize
        self.rope_theta = rope_theta
        self.screening = screening
        self.register_buffer("screening_counters", screening_counters(self.n_heads, device=device), persistent=False)

        def linear(inputs: int, outputs: int) -> nn.Linear:
            return nn.Linear(inputs, outputs, bias=bias, device=device, dtype=dtype)

        self.query1 = linear(d_model, self.n_heads * self.head_dim)
        self.key1 = linear(d_model, self.n_kv_heads * self.head_dim)
        self.query2 = linear(d_model, self.n_heads * self.head_dim)
        self.key2 = linear(d_model, self.n_kv_heads * self.head_dim)
        self.value = linear(d_model, self.n_kv_heads * self.value_dim)
        self.output = linear(self.n_heads * self.value_dim, d_model)
        self.head_norm = HeadNorm(self.n_heads, self.value_dim, eps=head_norm_eps, device=device)
        for name, start, learned in (("beta", beta, learn_beta), ("lambda", lam, learn_lam)):
            if not math.isfinite(start):
                raise ValueError(f"{'lam' if name == 'lambda' else name}: expected a finite number, got {start}")
            values = torch.full((self.n_heads,), float(start), dtype=torch.float32, device=device)
            # The name "lambda" is a keyword of Python; it is the name that checkpoints use.
            if learned:
                self.register_parameter(name, nn.Parameter(values))
            else:
                self.register_buffer(name, values)
        self.reset_parameters()

    @property
    def lam(self) -> Tensor:
        """The parameter (or buffer) ``lambda``, (H,)."""
        return getattr(self, "lambda")

    def reset_parameters(self) -> None:
        """Projections normal(0, 0.02), biases 0, gains 1, counters 0; beta and lambda keep their values."""
        for layer in (self.query1, self.key1, self.query2, self.key2, self.value, self.output):
            nn.init.normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        nn.init.ones_(self.head_norm.weight)
        self.screening_counters.zero_()

    @torch.no_grad()
    def project_(self) -> None:
        """Clamps lambda to [0, 1] in place, where it has a gradient."""
        self.lam.clamp_(0.0, 1.0)

    def forward(self, x: Tensor, *, return_statistics: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Attends from every position of x to itself and the positions before.

        Args:
            x: (B, T, d_model).
            return_statistics: also return survivors per row, int32 (B, H, T).
        """
        if x.dim() != 3 or x.shape[-1] != self.d_model:
            raise ValueError(f"x: expected shape (B, T, {self.d_model}), got {tuple(x.shape)}")
        if self.training:
            self.project_()
        queries_and_keys = []
        for layer in (self.query1, self.key1, self.query2, self.key2):
            heads = layer(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
            if self.rope_theta is not None:
                heads = apply_rotary_embedding(heads, theta=self.rope_theta)
            queries_and_keys.append(heads)
        v = self.value(x).unflatten(-1, (-1, self.value_dim)).transpose(1, 2)
        # The clone is what autograd keeps: the next forward may project lambda in place before this one's backward.
        attended = differential_threshold_rela(
            *queries_and_keys,
            v,
            lam=self.lam.clone(),
            beta=self.beta,
            kappa=self.kappa,
            power=self.power,
            normalize=self.normalize,
            return_statistics=return_statistics,
            screening=self.screening,
            screening_counters=self.screening_counters,
        )
        survivors = None
        if return_statistics:
            attended, survivors = attended
        y = self.output(self.head_norm(attended).transpose(1, 2).flatten(-2))
        return (y, survivors) if return_statistics else y

    def extra_repr(self) -> str:
        return (
            f"d_model={self.d_model}, heads={self.n_heads}, kv_heads={self.n_kv_heads}, view_heads={self.view_heads}, "
            f"kappa={self.kappa}, power={self.power}, normalize={self.normalize}, rope_theta={self.rope_theta}"
        )
