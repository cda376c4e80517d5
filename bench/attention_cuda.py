"""Times the operator on a CUDA device beside PyTorch's scaled dot product attention, in one process.

Every figure is the median of bursts of about 30 ms, timed with device events; inputs differ by regime:
random (iid normal, beta 1), dense (beta 0: half of all weights live), trained (of a trained model, --trained DIR).
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
from collections.abc import Callable

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import threshold_attention as ta


def milliseconds(call: Callable[[], object], bursts: int = 7, burst_ms: float = 30.0) -> float:
    call()
    torch.cuda.synchronize()
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    call()
    end.record()
    torch.cuda.synchronize()
    count = max(1, min(200, int(burst_ms / max(start.elapsed_time(end), 1e-3))))
    times = []
    for _ in range(bursts):
        start.record()
        for _ in range(count):
            call()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) / count)
    return statistics.median(times)


def make_inputs(regime: str, heads: int, dim: int, length: int, dtype: torch.dtype, trained: pathlib.Path | None):
    torch.manual_seed(1337)
    if regime == "trained":
        assert trained is not None

        def read(name: str) -> torch.Tensor:
            raw = torch.frombuffer(
                bytearray((trained / f"layer4_{name}_1x12x4096x64.bf16").read_bytes()), dtype=torch.bfloat16
            )
            return raw.view(1, 12, 4096, 64)[:, :, :length].repeat(1, heads // 12, 1, 1).to("cuda", dtype)

        q1, k1, q2, k2, v = (read(name) for name in ("q1", "k1", "q2", "k2", "v"))
        return q1, k1, q2, k2, v, 1.0352, 0.3789
    tensors = [torch.randn(1, heads, length, dim, device="cuda", dtype=dtype) for _ in range(5)]
    return *tensors, 0.0 if regime == "dense" else 1.0, 0.5


def forward_and_backward(function: Callable[..., torch.Tensor], tensors: list[torch.Tensor]) -> tuple[float, float]:
    """Milliseconds of the forward without gradients, and of the backward alone."""
    with torch.no_grad():
        forward = milliseconds(lambda: function(*tensors))
    leaves = [x.detach().requires_grad_() for x in tensors]
    output = function(*leaves)
    cotangent = torch.randn_like(output)
    backward = milliseconds(lambda: torch.autograd.grad(output, leaves, cotangent, retain_graph=True))
    return forward, backward


def measure(regime: str, heads: int, dim: int, length: int, dtype: torch.dtype, trained: pathlib.Path | None) -> dict:
    q1, k1, q2, k2, v, beta, lam = make_inputs(regime, heads, dim, length, dtype, trained)
    betas = torch.full((heads,), beta, device="cuda")
    lams = torch.full((heads,), lam, device="cuda")
    row: dict = {"regime": regime, "heads": heads, "dim": dim, "length": length, "dtype": str(dtype)[6:]}

    def softmax(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)

    backend = SDPBackend.EFFICIENT_ATTENTION if dtype == torch.float32 else SDPBackend.CUDNN_ATTENTION
    with sdpa_kernel(backend):
        row["sdpa"] = forward_and_backward(softmax, [q1, k1, v])
    row["tra"] = forward_and_backward(lambda q, k, v, b: ta.threshold_rela(q, k, v, beta=b), [q1, k1, v, betas])
    row["tda"] = forward_and_backward(
        lambda a, b, c, d, e, x, y: ta.differential_threshold_rela(a, b, c, d, e, beta=x, lam=y),
        [q1, k1, q2, k2, v, betas, lams],
    )
    for name in ("tra", "tda"):
        row[f"{name}_ratio"] = [s / t for s, t in zip(row["sdpa"], row[name], strict=True)]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trained", type=pathlib.Path, help="folder of layer4_*.bf16")
    parser.add_argument("--output", type=pathlib.Path, help="where the JSON goes")
    parser.add_argument("--cases", nargs="+", required=True, help="regime:dtype:heads:dim:length …")
    options = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = False
    rows = []
    heads = ("SDPA", "bwd", "TRA", "bwd", "TDA", "bwd")
    print(f"{'case':34} " + " ".join(f"{head:>8}" for head in heads), "  TRA ratio fwd, bwd")
    for case in options.cases:
        regime, dtype, heads, dim, length = case.split(":")
        row = measure(regime, int(heads), int(dim), int(length), getattr(torch, dtype), options.trained)
        rows.append(row)
        numbers = [*row["sdpa"], *row["tra"], *row["tda"]]
        print(
            f"{case:34} " + " ".join(f"{x:8.3f}" for x in numbers),
            "  {:.2f} {:.2f}".format(*row["tra_ratio"]),
            flush=True,
        )
    if options.output:
        result = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "unit": "ms", "rows": rows}
        options.output.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
