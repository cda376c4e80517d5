"""The fp32 forward gives the same bits with and without its screen; the screened gradients agree and repeat."""

from __future__ import annotations

import math

import pytest
import torch
from packed_inputs import gradients, packed_inputs

import threshold_attention as ta

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def attend(tensors: list[torch.Tensor], views: int, power: float, **parameters: torch.Tensor):
    q1, k1, q2, k2, v = tensors
    if views == 1:
        return ta.threshold_rela(q1, k1, v, beta=parameters["beta"], power=power, return_statistics=True)
    return ta.differential_threshold_rela(q1, k1, q2, k2, v, power=power, return_statistics=True, **parameters)


def run(tensors: list[torch.Tensor], views: int, power: float, beta: torch.Tensor) -> dict[str, torch.Tensor]:
    lam = torch.linspace(0, 1, len(beta), device="cuda")
    leaves = [x.detach().requires_grad_() for x in [*tensors, beta, lam]]
    output, survivors = attend(leaves[:5], views, power, beta=leaves[5], lam=leaves[6])
    torch.manual_seed(0)
    output.backward(torch.randn_like(output))
    names = ["q1", "k1", "q2", "k2", "v", "beta", "lam"]
    results = {f"d{name}": x.grad for name, x in zip(names, leaves, strict=True) if x.grad is not None}
    return {"output": output.detach(), "survivors": survivors} | results


def assert_screening_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, tensors: list[torch.Tensor], views: int, power: float, beta: torch.Tensor
) -> None:
    screened, again = run(tensors, views, power, beta), run(tensors, views, power, beta)
    monkeypatch.setenv("TDA_FP32_SCREEN", "off")
    dense = run(tensors, views, power, beta)
    assert screened.keys() == dense.keys()
    for name, expected in dense.items():
        assert torch.equal(screened[name].isnan(), expected.isnan()), name
        assert torch.equal(screened[name].nan_to_num(), again[name].nan_to_num()), f"{name} does not repeat"
        if name in ("output", "survivors"):
            assert torch.equal(screened[name].nan_to_num(), expected.nan_to_num()), name
        elif not expected.isnan().any():
            # Sums of the same products in another order.
            allowed = 1e-5 * expected.abs().max().clamp(min=1e-6)
            torch.testing.assert_close(screened[name], expected, rtol=0, atol=allowed.item(), msg=name)


def inputs(
    length: int, keys: int, dim: int, value_dim: int, follow: float, batch: int = 2, heads: int = 4, key_heads: int = 2
) -> list[torch.Tensor]:
    """Random tensors in which a share `follow` of the keys is close to a query."""
    torch.manual_seed(length + dim)
    q1, q2 = (torch.randn(batch, heads, length, dim, device="cuda") for _ in range(2))
    k1, k2 = (torch.randn(batch, key_heads, keys, dim, device="cuda") for _ in range(2))
    follows = torch.rand(batch, key_heads, keys, 1, device="cuda") < follow
    chosen = torch.randint(length, (keys,), device="cuda")
    k1 = torch.where(follows, q1[:, :: heads // key_heads, chosen] + 0.3 * k1, k1)
    return [q1, k1, q2, k2, torch.randn(batch, key_heads, keys, value_dim, device="cuda")]


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize(("dim", "value_dim"), [(64, 64), (128, 128), (64, 128), (80, 80), (12, 24)])
@pytest.mark.parametrize(
    ("length", "keys", "power", "follow"),
    [(1, 1, 2.0, 0.0), (63, 63, 2.0, 0.5), (513, 513, 2.0, 0.02), (77, 900, 1.5, 0.2), (1500, 1500, 3.0, 0.2)],
)
def test_random_inputs(monkeypatch, views, dim, value_dim, length, keys, power, follow) -> None:
    beta = torch.tensor([0.3, 0.6, 0.9, 1.05], device="cuda")
    assert_screening_changes_no_bit(monkeypatch, inputs(length, keys, dim, value_dim, follow), views, power, beta)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("distance", [1e-6, 5e-4, 1.1e-3])
def test_pairs_at_the_threshold(monkeypatch, seed, distance) -> None:
    torch.manual_seed(seed)
    heads, length = 4, 1024
    tensors = [torch.randn(1, heads, length, 64, device="cuda") for _ in range(5)]
    q, k = (torch.nn.functional.normalize(x.double(), dim=-1) for x in tensors[:2])
    scale = torch.sqrt(2 * torch.arange(1, length + 1, device="cuda").double().log() / 64)
    # Of each head, beta puts one of the strongest pairs above or below its threshold.
    ratio = (q @ k.transpose(-1, -2)).tril()[:, :, 64:] / scale[64:, None]
    strongest = ratio.flatten(2).topk(50).values[0, :, 10 * seed + 5]
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0], device="cuda")
    beta = (strongest + sign * distance / math.sqrt(2 * math.log(length) / 64)).float()
    assert_screening_changes_no_bit(monkeypatch, tensors, 1, 2.0, beta)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("spoiled", ["q", "k", "v"])
def test_values_that_are_not_finite(monkeypatch, views, spoiled) -> None:
    tensors = inputs(700, 700, 64, 64, 0.1)
    tensor = tensors[{"q": 0, "k": 1, "v": 4}[spoiled]]
    tensor[0, 0, 300, 5] = math.nan
    tensor[1, 1, 650, 63] = math.inf
    assert_screening_changes_no_bit(monkeypatch, tensors, views, 2.0, torch.full((4,), 0.9, device="cuda"))


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize(("dim", "value_dim"), [(64, 64), (128, 128), (64, 128)])
def test_strips_with_many_candidates(monkeypatch, views, dim, value_dim) -> None:
    """Bands and corners with many survivors, as in trained heads: warps divide a strip, or it is computed densely."""
    tensors = inputs(1000, 1100, dim, value_dim, 0.05)
    common = torch.randn(dim, device="cuda")
    for x in tensors[: 2 * views : 2]:
        x[0, 0, ::3] += 0.9 * common
        x[1, 2, 500:] += 2 * common
    for x in tensors[1 : 2 * views : 2]:
        x[:, 0, 200:500:2] += 0.9 * common
        x[1, 1, :300] += 2 * common
    assert_screening_changes_no_bit(monkeypatch, tensors, views, 2.0, torch.full((4,), 1.03, device="cuda"))


@pytest.mark.parametrize("views", [1, 2])
def test_packed_documents(monkeypatch, views) -> None:
    lengths = [(3, 3), (700, 900), (1, 1), (64, 64), (0, 0), (300, 301)]
    packed = packed_inputs(lengths, views=views, device="cuda", dtype=torch.float32, dim=64)
    screened = packed.attend(ta)
    screened_gradients = gradients(screened, packed)
    monkeypatch.setenv("TDA_FP32_SCREEN", "off")
    dense = packed.attend(ta)
    assert torch.equal(screened, dense)
    for name, expected in gradients(dense, packed).items():
        torch.testing.assert_close(screened_gradients[name], expected, rtol=1e-4, atol=1e-5)
