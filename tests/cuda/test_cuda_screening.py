"""The Hopper forward gives the same bits with and without its screen, and from its sparse and its dense kernel."""

from __future__ import annotations

import math

import pytest
import torch

import threshold_attention as ta

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="no Hopper GPU"
)
DTYPES = (torch.bfloat16, torch.float16)


def attend(
    views: int,
    tensors: list[torch.Tensor],
    beta: torch.Tensor,
    power: float = 2.0,
    *,
    screening: str = "always",
    normalize: bool = True,
) -> torch.Tensor:
    q1, k1, q2, k2, v = tensors
    options = dict(beta=beta, power=power, screening=screening, normalize=normalize)
    with torch.no_grad():
        if views == 1:
            return ta.threshold_rela(q1, k1, v, **options)
        lam = torch.linspace(0, 1, q1.shape[1], device="cuda")
        return ta.differential_threshold_rela(q1, k1, q2, k2, v, lam=lam, **options)


def assert_screening_changes_no_bit(
    monkeypatch: pytest.MonkeyPatch, views: int, tensors: list[torch.Tensor], beta: torch.Tensor, power: float = 2.0
) -> None:
    screened = attend(views, tensors, beta, power)
    assert torch.equal(screened, attend(views, tensors, beta, power, screening="automatic"))
    monkeypatch.setenv("TDA_SM90_SCREEN", "off")
    dense = attend(views, tensors, beta, power)
    monkeypatch.setenv("TDA_SM90_DENSE", "off")
    sparse = attend(views, tensors, beta, power)
    assert torch.equal(screened, dense)
    assert torch.equal(screened, sparse)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize(
    ("length", "keys", "power"),
    [(1, 1, 2.0), (63, 63, 1.0), (257, 257, 2.0), (77, 513, 1.5), (200, 2050, 2.0), (2100, 2100, 3.0)],
)
def test_random_inputs(monkeypatch, dim, dtype, views, length, keys, power) -> None:
    torch.manual_seed(length)
    heads = 4

    def normal(count: int, rows: int) -> torch.Tensor:
        return torch.randn(2, count, rows, dim, device="cuda").to(dtype)

    tensors = [normal(heads, length), normal(2, keys), normal(heads, length), normal(2, keys), normal(2, keys)]
    beta = torch.tensor([-0.2, 0.0, 0.4, 1.0], device="cuda")
    assert_screening_changes_no_bit(monkeypatch, views, tensors, beta, power)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(4))
def test_pairs_at_the_threshold(monkeypatch, dim, dtype, seed) -> None:
    torch.manual_seed(seed)
    heads, length = 4, 1024
    tensors = [torch.randn(1, heads, length, dim, device="cuda").to(dtype) for _ in range(5)]
    q, k = (torch.nn.functional.normalize(x.double(), dim=-1) for x in tensors[:2])
    scale = torch.sqrt(2 * torch.arange(1, length + 1, device="cuda").double().log() / dim)
    # Of each head, beta puts one of the strongest pairs 1e-6 above or below its threshold.
    ratio = (q @ k.transpose(-1, -2)).tril()[:, :, 64:] / scale[64:, None]
    strongest = ratio.flatten(2).topk(50).values[0, :, 10 * seed + 5]
    sign = torch.tensor([1.0, -1.0, 1.0, -1.0], device="cuda")
    beta = (strongest + sign * 1e-6 / math.sqrt(2 * math.log(length) / dim)).float()
    assert_screening_changes_no_bit(monkeypatch, 1, tensors, beta)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("factor", [0.0, 1e-38, 1e-25, 1e-13, 1e-8, 1e8, 1e13])
def test_keys_of_any_size(dim, normalize, factor) -> None:
    """A tile of 256 keys of nearly no size, or of a huge one, among others; one of its keys is ordinary in head 0."""
    torch.manual_seed(1)
    tensors = [torch.randn(1, 2, 600, dim, device="cuda").bfloat16() for _ in range(5)]
    tensors[1][:, :, 256:512] *= factor
    tensors[1][:, 0, 300] = torch.randn(dim, device="cuda")
    for beta in (-0.1, 0.0, 0.5):
        betas = torch.full((2,), beta, device="cuda")
        screened = attend(1, tensors, betas, normalize=normalize)
        assert torch.equal(screened, attend(1, tensors, betas, normalize=normalize, screening="never"))


@pytest.mark.parametrize("length", [1, 2, 63, 64, 65, 255, 256, 257, 300, 511, 512])
@pytest.mark.parametrize(("batch", "heads", "key_heads"), [(2, 4, 4), (3, 4, 2), (150, 4, 1), (1, 8, 1)])
def test_short_calls(length, batch, heads, key_heads) -> None:
    """Without an index and a screen, the dense kernel computes 1/|k| itself, to the bit as it is computed elsewhere."""
    torch.manual_seed(length)
    beta = torch.linspace(-0.1, 0.6, heads, device="cuda")
    for queries in {length, (length + 1) // 2, 1}:
        q = torch.randn(batch, heads, queries, 64, device="cuda").bfloat16()
        k, v = (torch.randn(batch, key_heads, length, 64, device="cuda").bfloat16() for _ in range(2))
        k[:, :, length // 2] *= 1e-20
        call = [q, k, None, None, v]
        expected = attend(1, call, beta)
        for screening in ("never", "automatic"):
            assert torch.equal(expected, attend(1, call, beta, screening=screening)), (queries, screening)


@pytest.mark.parametrize("length", [1, 64, 65, 300, 512])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_short_calls_with_a_value_that_is_not_finite(memory_of_nan, length, value) -> None:
    """Rows that do not see it, or give it no weight, are those of a finite value: they are computed one by one."""
    torch.manual_seed(length)
    beta = torch.linspace(-0.1, 0.6, 4, device="cuda")
    q = torch.randn(2, 4, length, 64, device="cuda").bfloat16()
    k, v = (torch.randn(2, 2, length, 64, device="cuda").bfloat16() for _ in range(2))
    for key in {0, length // 2, length - 1}:
        one = torch.zeros_like(v)
        one[:, :, key] = 1.0
        weighed = attend(1, [q, k, None, None, one], beta, screening="always")[..., 0] != 0.0
        expected = attend(1, [q, k, None, None, v], beta, screening="always")
        atol = 5e-3 * float(expected.abs().max())
        bad = v.clone()
        bad[:, :, key] = value
        for screening in ("never", "automatic"):
            output = attend(1, [q, k, None, None, bad], beta, screening=screening)
            assert not output[weighed].isfinite().any(), (key, screening)
            torch.testing.assert_close(output[~weighed], expected[~weighed], rtol=2e-2, atol=atol)


@pytest.mark.parametrize("length", [1, 64, 300, 512])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_short_calls_with_a_key_that_is_not_finite(memory_of_nan, length, value) -> None:
    torch.manual_seed(length)
    beta = torch.linspace(-0.1, 0.6, 4, device="cuda")
    q, k, v = (torch.randn(2, 4, length, 64, device="cuda").bfloat16() for _ in range(3))
    expected = attend(1, [q, k, None, None, v], beta)
    key = length // 2
    k[:, :, key, 5] = value
    for screening in ("never", "automatic"):
        output = attend(1, [q, k, None, None, v], beta, screening=screening)
        assert output[:, :, key:].isnan().all(), screening
        assert torch.equal(output[:, :, :key], expected[:, :, :key]), screening


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("length", [1, 1000, 8200])
@pytest.mark.parametrize("bad", ["everything", "keys, and queries are zero"])
def test_where_nothing_is_finite_the_screen_certifies_nothing(memory_of_nan, dim, length, bad) -> None:
    q = torch.full((2, 2, length, dim), math.nan if bad == "everything" else 0.0, device="cuda").bfloat16()
    k = torch.full((2, 2, length, dim), math.nan, device="cuda").bfloat16()
    v = torch.ones_like(k)
    beta = torch.tensor([0.5, 1.0], device="cuda")
    for screening in ("always", "never"):
        assert attend(1, [q, k, None, None, v], beta, screening=screening).isnan().all(), screening
