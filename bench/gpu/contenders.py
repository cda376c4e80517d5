"""Who runs in a row: the operator, PyTorch's softmax attention on each of its backends, and TRA written otherwise."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch
import torch._functorch.config
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from bench.gpu.built_package import built_package
from bench.gpu.flex_attention import causal_mask, flex_threshold_rela, thresholds
from bench.gpu.inputs import Inputs
from bench.gpu.naive_attention import naive_threshold_rela
from bench.gpu.timing import Call, Contender

FORWARD, BACKWARD, BOTH = "forward", "backward", "forward+backward"
RUNS = (FORWARD, BACKWARD, BOTH)
OURS = {"tra": 1, "tda": 2}  # views
SDPA = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
TITLES = {
    "tra": "TRA",
    "tda": "TDA",
    "cudnn": "SDPA cuDNN",
    "flash": "SDPA flash (FA2)",
    "efficient": "SDPA memory-efficient",
    "math": "SDPA math",
    "flex": "FlexAttention",
    "naive": "naive, compiled",
}

Function = Callable[..., Tensor]


def function_of(name: str, inputs: Inputs) -> tuple[Function, list[Tensor]]:
    """The function of a contender, and the tensors that it is differentiated by.

    Raises:
        ValueError: no contender has that name.
    """
    if name in OURS:
        ta = built_package()
        if name == "tra":
            return (
                lambda q, k, v, beta: ta.threshold_rela(q, k, v, beta=beta),
                [inputs.q[0], inputs.k[0], inputs.v, inputs.beta],
            )
        return (
            lambda q1, k1, q2, k2, v, beta, lam: ta.differential_threshold_rela(q1, k1, q2, k2, v, beta=beta, lam=lam),
            [inputs.q[0], inputs.k[0], inputs.q[1], inputs.k[1], inputs.v, inputs.beta, inputs.lam],
        )
    tensors = [inputs.q[0], inputs.k[0], inputs.v]
    if name in SDPA:
        return lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True), tensors
    if name not in ("flex", "naive"):
        raise ValueError(f"contender: expected one of {', '.join(TITLES)}, got {name!r}")
    # A donated buffer would forbid to run the backward of one forward again and again.
    torch._functorch.config.donated_buffer = False
    # One beta for all heads and no gradient of it: less work than ours has.
    length, dim = inputs.v.shape[-2:]
    tau = thresholds(length, dim, inputs.beta[0].item(), inputs.v.device)
    if name == "naive":
        naive = torch.compile(naive_threshold_rela, dynamic=False)
        return lambda q, k, v: naive(q, k, v, tau), tensors
    mask = causal_mask(length, inputs.v.device)
    flex = torch.compile(flex_threshold_rela, dynamic=False)
    return lambda q, k, v: flex(q, k, v, tau, mask), tensors


def backend_of(name: str) -> Callable[[], contextlib.AbstractContextManager[object]]:
    """What must be entered while the contender runs."""
    return (lambda: sdpa_kernel(SDPA[name])) if name in SDPA else contextlib.nullcontext


def make_call(function: Function, tensors: list[Tensor], run: str) -> Call:
    """The call to be timed: the forward without gradients, the backward alone (all gradients), or both together."""
    if run == FORWARD:

        def forward() -> Tensor:
            with torch.no_grad():
                return function(*tensors)

        return forward
    leaves = [x.detach().requires_grad_() for x in tensors]
    cotangent = torch.randn_like(tensors[0])
    if run == BACKWARD:
        output = function(*leaves)
        return lambda: torch.autograd.grad(output, leaves, cotangent, retain_graph=True)
    if run == BOTH:
        return lambda: torch.autograd.grad(function(*leaves), leaves, cotangent)
    raise ValueError(f"run: expected one of {', '.join(RUNS)}, got {run!r}")


def make_contender(name: str, inputs: Inputs, run: str) -> Contender:
    def prepare() -> Call:
        return make_call(*function_of(name, inputs), run)

    return Contender(name, prepare, backend_of(name), required=name in OURS)
