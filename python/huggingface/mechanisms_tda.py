"""The attention mechanisms, a class each. Formulas: docs/mechanisms.md of the project.

n is the number of keys that a row sees, z = q k^T / sqrt(D). Those that no fused kernel serves are dense, T x T.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention_tda import (
    Attention,
    HeadRmsNorm,
    RmsNorm,
    causal_softmax,
    is_visible,
    joined,
    visible_keys,
)
from .configuration_tda import TdaConfig

try:
    from threshold_attention import differential_threshold_rela, threshold_rela
except ImportError:  # the softmax family does without

    def _missing(*_: Any, **__: Any) -> Tensor:
        raise ImportError("this model's attention needs the package threshold_attention (`make` in the TDA project)")

    differential_threshold_rela = threshold_rela = _missing

Heads = list[Tensor]


def option(config: TdaConfig, name: str, default: Any) -> Any:
    """An option of one mechanism; checkpoints from before it existed have its default."""
    return getattr(config, name, default)


def initial_lambda(layer: int) -> float:
    return 0.8 - 0.6 * math.exp(-0.3 * layer)


class Softmax(Attention):
    def mix(self, q: Heads, k: Heads, v: Tensor, hidden: Tensor) -> Tensor:
        return joined(causal_softmax(q[0], k[0], v))


class GatedSoftmax(Attention):
    """The output of a head times sigmoid(W x), one gate for each head or each channel."""

    def __init__(self, config: TdaConfig, layer: int) -> None:
        super().__init__(config, layer)
        gates = 1 if option(config, "gate", "head") == "head" else self.value_dim
        self.gate = nn.Linear(config.hidden_size, self.heads * gates, bias=False)

    def mix(self, q: Heads, k: Heads, v: Tensor, hidden: Tensor) -> Tensor:
        gates = self.gate(hidden).float().sigmoid().unflatten(-1, (self.heads, -1))
        return (causal_softmax(q[0], k[0], v).transpose(1, 2) * gates.to(v.dtype)).flatten(2)


class ScalableSoftmax(Attention):
    """softmax((scale ln n + bias) z)."""

    def __init__(self, config: TdaConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.scale = nn.Parameter(torch.full((self.heads,), float(option(config, "ssmax_scale", 0.168))))
        self.bias = nn.Parameter(torch.zeros(self.heads)) if option(config, "ssmax_bias", False) else None

    def mix(self, q: Heads, k: Heads, v: Tensor, hidden: Tensor) -> Tensor:
        factor = self.scale.float().view(-1, 1, 1) * visible_keys(q[0], k[0]).log()
        if self.bias is not None:
            factor = factor + self.bias.float().view(-1, 1, 1)
        return joined(causal_softmax((q[0].float() * factor).to(q[0].dtype), k[0], v))


def entmax(scores: Tensor, alpha: float) -> Tensor:
    """max(0, (alpha - 1) z - tau) ** (1 / (alpha - 1)), rows summing to 1.

    Newton's method from below: the sum is convex in tau for alpha <= 2, so that no step overshoots.
    """
    z = (alpha - 1) * scores
    power = 1 / (alpha - 1)
    tau = z.amax(-1, keepdim=True) - 1
    for _ in range(64):
        excess = (z - tau).clamp_min(0)
        slope = torch.where(excess > 0, excess.pow(power - 1), 0).sum(-1, keepdim=True)
        step = (excess.pow(power).sum(-1, keepdim=True) - 1) / (power * slope)
        moved = torch.maximum(tau, tau + step)
        if torch.equal(moved, tau):
            break
        tau = moved
    return (z - tau).clamp_min(0).pow(power)


class DenseAttention(Attention):
    """Weights as a function of the scores of a row."""

    hidden_score = -math.inf  # of keys that a row does not see

    def queries(self, q: Tensor, k: Tensor, hidden: Tensor) -> Tensor:
        return q.float() / math.sqrt(self.head_dim)

    def keys(self, k: Tensor) -> Tensor:
        return k.float()

    def weights(self, scores: Tensor, visible: Tensor) -> Tensor:
        raise NotImplementedError

    def mix(self, q: Heads, k: Heads, v: Tensor, hidden: Tensor) -> Tensor:
        scores = self.queries(q[0], k[0], hidden) @ self.keys(k[0]).transpose(-1, -2)
        scores = scores.masked_fill(~is_visible(q[0], k[0]), self.hidden_score)
        return joined(self.weights(scores, visible_keys(q[0], k[0])) @ v.float())


class Entmax(DenseAttention):
    def weights(self, scores: Tensor, visible: Tensor) -> Tensor:
        return entmax(scores, option(self.config, "entmax_alpha", 1.5))


class AdaptiveScalableEntmax(Entmax):
    """entmax((1 + b ln(n + 1) ** g) z) with b = softplus(W_b x), g = 2 tanh(W_g x)."""

    def __init__(self, config: TdaConfig, layer: int) -> None:
        super().__init__(config, layer)
        bias = bool(option(config, "asentmax_bias", True))
        self.beta = nn.Linear(config.hidden_size, self.heads, bias=bias)
        self.gamma = nn.Linear(config.hidden_size, self.heads, bias=bias)

    def queries(self, q: Tensor, k: Tensor, hidden: Tensor) -> Tensor:
        beta = F.softplus(self.beta(hidden).float()).transpose(1, 2).unsqueeze(-1)
        gamma = 2 * self.gamma(hidden).float().tanh().transpose(1, 2).unsqueeze(-1)
        length = (visible_keys(q, k) + 1).log()
        return super().queries(q, k, hidden) * (1 + beta * length.pow(gamma))


class LengthScaledSoftplus(DenseAttention):
    """A = softplus(x) / sum, x = ln D ln n cos(q, k); then max(0, n A - o) ** p / sum."""

    ROWS_WITHOUT_OFFSET = 3
    EVEN = 2.0**-17  # a row whose keys all score alike: n A - 1 is rounding, its weights are A

    def queries(self, q: Tensor, k: Tensor, hidden: Tensor) -> Tensor:
        return F.normalize(q.float(), dim=-1) * (math.log(self.head_dim) * visible_keys(q, k).log())

    def keys(self, k: Tensor) -> Tensor:
        return F.normalize(k.float(), dim=-1)

    def weights(self, scores: Tensor, visible: Tensor) -> Tensor:
        plain = F.softplus(scores, threshold=40)
        plain = plain / plain.sum(-1, keepdim=True)
        offset = (visible > self.ROWS_WITHOUT_OFFSET) * option(self.config, "lssar_offset", 1.0)
        excess = plain * visible - offset
        greatest = excess.amax(-1, keepdim=True)
        # Of excess / greatest: n ** 15 overflows.
        sharp = (excess / greatest).clamp_min(0).pow(option(self.config, "lssar_power", 15.0))
        return torch.where(greatest <= self.EVEN, plain, sharp / sharp.sum(-1, keepdim=True))


class Softpick(DenseAttention):
    """max(0, e^z - 1) / (sum |e^z - 1| + eps), both times e^-m with m = max(0, max z)."""

    hidden_score = 0.0

    def weights(self, scores: Tensor, visible: Tensor) -> Tensor:
        greatest = scores.amax(-1, keepdim=True).clamp_min(0)
        magnitude = -torch.expm1(-scores.abs()) * (scores.clamp_min(0) - greatest).exp()
        total = magnitude.sum(-1, keepdim=True) + option(self.config, "softpick_eps", 1e-8)
        return magnitude * (scores > 0) / total.clamp_min(torch.finfo(torch.float32).tiny)


class Rela(Attention):
    """max(0, z) v, then a norm over all heads together."""

    def __init__(self, config: TdaConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.kind = option(config, "rela_norm", "rms")
        width, eps = self.heads * self.value_dim, config.head_norm_eps
        if self.kind == "head_rms":
            self.head_norm = HeadRmsNorm(self.heads, self.value_dim, eps=eps)
        elif self.kind == "layer":
            self.head_norm = nn.LayerNorm(width, eps=eps, bias=False)
        else:
            self.head_norm = RmsNorm(width, eps=eps)
        if self.kind == "gated_rms":
            self.head_norm.gate = nn.Parameter(torch.zeros(width))

    def mix(self, q: Heads, k: Heads, v: Tensor, hidden: Tensor) -> Tensor:
        rows = threshold_rela(q[0], k[0], v, beta=0.0, power=1.0, normalize=False).float() / math.sqrt(self.head_dim)
        if self.kind == "head_rms":
            return self.head_norm(rows)
        rows = joined(rows)
        normalized = self.head_norm(rows)
        return normalized * (self.head_norm.gate * rows).sigmoid() if self.kind == "gated_rms" else normalized


class ThresholdRela(Attention):
    """TRA: max(0, cos(q, k) - beta c) ** p v, then RMSNorm of every head."""

    def __init__(self, config: TdaConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.head_norm = HeadRmsNorm(self.heads, self.value_dim, eps=config.head_norm_eps)
        self.beta = nn.Parameter(torch.full((self.heads,), float(option(config, "beta", 1.0))))

    def mix(self, q: Heads, k: Heads, v: Tensor, hidden: Tensor) -> Tensor:
        config = self.config
        return self.head_norm(
            threshold_rela(q[0], k[0], v, beta=self.beta.float(), kappa=config.kappa, power=config.power)
        )


class ThresholdDifferentialRela(ThresholdRela):
    """TDA: two views of TRA that share threshold and values, the second times lambda subtracted."""

    views = 2

    def __init__(self, config: TdaConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.register_parameter("lambda", second_view_factor(config, self.heads))

    def mix(self, q: Heads, k: Heads, v: Tensor, hidden: Tensor) -> Tensor:
        config = self.config
        factors = {"lam": getattr(self, "lambda").float(), "beta": self.beta.float()}
        rows = differential_threshold_rela(q[0], k[0], q[1], k[1], v, **factors, kappa=config.kappa, power=config.power)
        return self.head_norm(rows)


def second_view_factor(config: TdaConfig, heads: int) -> nn.Parameter:
    return nn.Parameter(torch.full((heads,), float(option(config, "lambda", 0.5))))


class DifferentialRela(Attention):
    """TDA without L2 norm, threshold and power: max(0, z1) - lambda max(0, z2)."""

    views = 2

    def __init__(self, config: TdaConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.head_norm = HeadRmsNorm(self.heads, self.value_dim, eps=config.head_norm_eps)
        self.register_parameter("lambda", second_view_factor(config, self.heads))

    def mix(self, q: Heads, k: Heads, v: Tensor, hidden: Tensor) -> Tensor:
        rows = differential_threshold_rela(
            q[0], k[0], q[1], k[1], v, lam=getattr(self, "lambda").float(), beta=0.0, power=1.0, normalize=False
        )
        return self.head_norm(rows.float() / math.sqrt(self.head_dim))


class DifferentialSoftmax(Attention):
    """softmax(z1) - lambda softmax(z2) with half the heads; lambda is one number of the layer."""

    views = 2
    EPS = 1e-5

    def __init__(self, config: TdaConfig, layer: int) -> None:
        super().__init__(config, layer)
        for name in ("query1", "key1", "query2", "key2"):
            self.register_parameter(f"lambda_{name}", nn.Parameter(0.1 * torch.randn(self.head_dim)))
        self.head_norm = RmsNorm(self.value_dim, eps=self.EPS)

    def layout(self, config: TdaConfig) -> tuple[int, int, int]:
        dim = config.hidden_size // config.num_attention_heads
        return config.num_attention_heads // 2, dim, 2 * dim

    def mix(self, q: Heads, k: Heads, v: Tensor, hidden: Tensor) -> Tensor:
        first, second = (
            (getattr(self, f"lambda_query{view}").float() * getattr(self, f"lambda_key{view}").float()).sum().exp()
            for view in (1, 2)
        )
        start = initial_lambda(self.layer)
        rows = causal_softmax(q[0], k[0], v).float()
        rows = rows - (first - second + start) * causal_softmax(q[1], k[1], v).float()
        return joined(self.head_norm(rows)) * (1 - start)


class Dex(Attention):
    """o - lambda o W^T with o of a softmax; lambda moves from a fixed to a learned one over annealing_steps."""

    def __init__(self, config: TdaConfig, layer: int) -> None:
        super().__init__(config, layer)
        self.differential = nn.Linear(self.value_dim, self.value_dim, bias=False)
        self.lambda_learned = nn.Parameter(torch.zeros(1))
        self.annealing_step = nn.Parameter(torch.zeros(1), requires_grad=False)

    def mix(self, q: Heads, k: Heads, v: Tensor, hidden: Tensor) -> Tensor:
        rows = causal_softmax(q[0], k[0], v)
        progress = (self.annealing_step.float() / option(self.config, "dex_annealing_steps", 1000)).clamp_max(1)
        factor = (1 - progress) * progress * initial_lambda(self.layer) + progress * self.lambda_learned.float()
        return joined(rows - F.linear(rows, (factor * self.differential.weight.float()).to(rows.dtype)))


MECHANISMS: dict[str, type[Attention]] = {
    "softmax": Softmax,
    "gated_softmax": GatedSoftmax,
    "ssmax": ScalableSoftmax,
    "entmax": Entmax,
    "lssar": LengthScaledSoftplus,
    "rela": Rela,
    "diff_softmax": DifferentialSoftmax,
    "dex": Dex,
    "diff_rela": DifferentialRela,
    "tra": ThresholdRela,
    "tda": ThresholdDifferentialRela,
    "asentmax": AdaptiveScalableEntmax,
    "softpick": Softpick,
}
