"""Forward and backward through every kernel family, small, for compute-sanitizer: scripts/gpu/sanitize.sh.

Families: half (sm_90, or the portable kernels elsewhere), fused (dense heads on sm_90, backward in one kernel), packed
(half with packed documents), pairs (lists of survivors, T = 8192), fp32 (screened, shared strips, dense). Prints a line
a case, and nothing about values: those are the tests' business.
"""

from __future__ import annotations

import argparse
import itertools
import os

import torch

import threshold_attention as ta

BF16, FP16, FP32 = torch.bfloat16, torch.float16, torch.float32


def run(
    heads: int,
    dim: int,
    length: int,
    views: int,
    dtype: torch.dtype,
    beta: float,
    power: float = 2.0,
    screening: str = "automatic",
) -> None:
    """A forward without gradient, and one with its backward. The last eighth of the heads' queries stands near keys, so
    that there are long rows."""
    generator = torch.Generator("cuda").manual_seed(length)

    def tensor() -> torch.Tensor:
        return torch.randn(1, heads, length, dim, generator=generator, device="cuda")

    q, k = [tensor() for _ in range(views)], [tensor() for _ in range(views)]
    for n in range(views):
        q[n][:, :, -(length // 8) :] = k[n][:, :, 3:4] + 0.3 * q[n][:, :, -(length // 8) :]
    inputs = [x.to(dtype).requires_grad_() for pair in zip(q, k, strict=True) for x in pair]
    v = tensor().to(dtype).requires_grad_()
    betas = torch.full((heads,), beta, device="cuda", requires_grad=True)
    counters = ta.screening_counters(heads, device="cuda")
    lam = torch.full((heads,), 0.4, device="cuda", requires_grad=True)
    wanted = [*inputs, v, betas] + ([lam] if views == 2 else [])

    def attend() -> torch.Tensor:
        options = dict(beta=betas, power=power, screening=screening, screening_counters=counters)
        if views == 1:
            return ta.threshold_rela(*inputs, v, **options)
        return ta.differential_threshold_rela(*inputs, v, lam=lam, **options)

    with torch.no_grad():
        attend()
    output = attend()
    torch.autograd.grad(output, wanted, torch.ones_like(output))
    torch.cuda.synchronize()
    print(heads, dim, length, views, dtype, beta, power, flush=True)


def run_packed(
    heads: int, dim: int, lengths: list[tuple[int, int]], views: int, dtype: torch.dtype, beta: float
) -> None:
    """One forward and backward over packed documents of these numbers of queries and keys."""
    generator = torch.Generator("cuda").manual_seed(len(lengths))
    totals = [sum(row) for row in zip(*lengths, strict=True)]
    offsets = [
        torch.tensor([0, *itertools.accumulate(row)], dtype=torch.int32, device="cuda")
        for row in zip(*lengths, strict=True)
    ]

    def tensor(total: int) -> torch.Tensor:
        return torch.randn(total, heads, dim, generator=generator, device="cuda").to(dtype).requires_grad_()

    inputs = [tensor(total) for _ in range(views) for total in totals]
    v, betas = tensor(totals[1]), torch.full((heads,), beta, device="cuda", requires_grad=True)
    if views == 1:
        output = ta.threshold_rela_varlen(*inputs, v, *offsets, beta=betas)
    else:
        lam = torch.full((heads,), 0.4, device="cuda")
        output = ta.differential_threshold_rela_varlen(*inputs, v, *offsets, beta=betas, lam=lam)
    torch.autograd.grad(output, [*inputs, v, betas], torch.ones_like(output))
    torch.cuda.synchronize()
    print(heads, dim, lengths, views, dtype, beta, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="+", choices=["half", "fused", "packed", "pairs", "fp32"])
    families = parser.parse_args().families
    if "half" in families:
        for dim in (64, 128):
            for views in (1, 2):
                run(3, dim, 700, views, BF16, 0.3)
                run(3, dim, 300, views, FP16, 0.1)
                run(3, dim, 300, views, FP16, 0.1, screening="always")
        run(3, 64, 333, 1, BF16, 0.5, 1.5)
        run(3, 48, 200, 2, BF16, 0.5)
    if "fused" in families:
        os.environ["TDA_SM90_FUSED_BACKWARD"] = "on"
        run(5, 64, 700, 1, BF16, 0.1)
        run(3, 64, 321, 2, BF16, -0.1)
        run(2, 64, 200, 2, BF16, 0.1, 1.5)
        del os.environ["TDA_SM90_FUSED_BACKWARD"]
    if "packed" in families:
        lengths = [(3, 3), (0, 0), (65, 129), (0, 19), (257, 300), (1, 1), (128, 128), (0, 0)]
        for dim in (64, 128):
            for views in (1, 2):
                run_packed(2, dim, lengths, views, BF16, 0.6)
                run_packed(2, dim, lengths, views, FP16, 0.0)
    if "pairs" in families:
        run(2, 64, 8192, 1, BF16, 1.4)
        run(2, 128, 8192, 2, FP16, 1.4)
        run(1, 64, 8255, 2, BF16, 1.0)
    if "fp32" in families:
        run(12, 64, 512, 1, FP32, 1.0)
        run(12, 64, 384, 2, FP32, 1.0)
        run(2, 128, 300, 1, FP32, 0.5)


if __name__ == "__main__":
    main()
