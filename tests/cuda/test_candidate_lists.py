"""From 8,192 keys, the Hopper forward computes strips of 16 rows by lists of single candidate keys. That changes no bit
of outputs, survivor counts, gradients, nor of the backward's way through the survivor index."""

from __future__ import annotations

import pytest
import torch

import threshold_attention as ta

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="no Hopper GPU"
)
LISTED = 8192  # keys


def run(views: int, tensors: list[torch.Tensor], beta: torch.Tensor, power: float) -> list[torch.Tensor]:
    """Output and counts, both without an index, the output alone, and all gradients."""
    used = tensors if views == 2 else [tensors[0], tensors[1], tensors[4]]
    lam = torch.linspace(0.2, 0.9, tensors[0].shape[1], device="cuda")
    leaves = [x.detach().requires_grad_() for x in [*used, beta, *([lam] if views == 2 else [])]]

    def attend(return_statistics: bool) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        options = dict(power=power, return_statistics=return_statistics)
        if views == 1:
            q, k, v, b = leaves
            return ta.threshold_rela(q, k, v, beta=b, **options)
        q1, k1, q2, k2, v, b, weight = leaves
        return ta.differential_threshold_rela(q1, k1, q2, k2, v, beta=b, lam=weight, **options)

    output, survivors = attend(True)
    with torch.no_grad():
        unindexed = attend(True)
        alone = attend(False)
    cotangent = torch.randn(output.shape, generator=torch.Generator("cuda").manual_seed(3), device="cuda")
    gradients = torch.autograd.grad(output, leaves, cotangent.to(output.dtype))
    return [output, survivors, *unindexed, alone, *gradients]


def assert_lists_change_no_bit(
    monkeypatch: pytest.MonkeyPatch, views: int, tensors: list[torch.Tensor], beta: torch.Tensor, power: float = 2.0
) -> None:
    listed = run(views, tensors, beta, power)
    assert listed[1].sum() > 0
    for switched_off in (["TDA_SM90_LISTED"], ["TDA_SM90_SCREEN"], ["TDA_SM90_SCREEN", "TDA_SM90_DENSE"]):
        with monkeypatch.context() as patch:
            for variable in switched_off:
                patch.setenv(variable, "off")
            for result, expected in zip(listed, run(views, tensors, beta, power), strict=True):
                assert torch.equal(result, expected), switched_off


def normal(heads: int, rows: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(1, heads, rows, dim, device="cuda").to(dtype)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize(
    ("length", "keys", "power"), [(8192, 8192, 2.0), (1000, 9001, 1.0), (8200, 8200, 1.5), (40, 70000, 2.0)]
)
def test_random_inputs(memory_of_nan, monkeypatch, dim, dtype, views, length, keys, power) -> None:
    torch.manual_seed(length)
    tensors = [normal(h, rows, dim, dtype) for h, rows in ((4, length), (2, keys), (4, length), (2, keys), (2, keys))]
    beta = torch.tensor([0.6, 0.8, 0.9, 1.0], device="cuda")  # from lists that overflow to hardly a candidate
    assert_lists_change_no_bit(monkeypatch, views, tensors, beta, power)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("views", [1, 2])
def test_batches_with_heads_beside_each_other(memory_of_nan, monkeypatch, dim, views) -> None:
    """Views of (B, T, H, D), as models hand them over: the output is stored likewise."""
    torch.manual_seed(5)
    tensors = [torch.randn(2, 8203, 3, dim, device="cuda").bfloat16().transpose(1, 2) for _ in range(5)]
    beta = torch.tensor([0.7, 0.9, 1.0], device="cuda")
    output = ta.threshold_rela(tensors[0], tensors[1], tensors[4], beta=beta)
    assert output.stride() == tensors[0].stride()
    assert_lists_change_no_bit(monkeypatch, views, tensors, beta)


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("views", [1, 2])
def test_several_keys_in_a_slice(monkeypatch, dim, views) -> None:
    """Runs of equal keys of every length to 40, at every place in a slice, each met by a query of every fifth strip."""
    torch.manual_seed(0)
    tensors = [normal(2, LISTED, dim, torch.bfloat16) for _ in range(5)]
    first = 100
    for run_length in range(1, 41):
        for k, q in ((tensors[1], tensors[0]), (tensors[3], tensors[2])):
            k[:, :, first : first + run_length] = k[:, :, first : first + 1]
            q[:, :, 4000 + 80 * run_length : 4003 + 80 * run_length] = k[:, :, first : first + 1]
        first += run_length + 3
    assert_lists_change_no_bit(monkeypatch, views, tensors, torch.tensor([0.95, 1.0], device="cuda"))


def test_values_that_are_not_finite_reach_only_rows_that_weigh_them() -> None:
    torch.manual_seed(1)
    q, k, v = (normal(1, LISTED, 64, torch.bfloat16) for _ in range(3))
    beta = torch.ones(1, device="cuda")
    q[:, :, 5000] = k[:, :, 77]
    clean = ta.threshold_rela(q, k, v, beta=beta)
    v[:, :, 77] = float("inf")
    v[:, :, 78] = float("nan")
    scores = torch.nn.functional.normalize(q.double(), dim=-1) @ torch.nn.functional.normalize(
        k[:, :, 77:79].double(), dim=-1
    ).transpose(-1, -2)
    position = torch.arange(LISTED, device="cuda")
    tau = torch.sqrt(2 * (position + 1).double().log() / 64)[:, None]
    seen = position[:, None] >= torch.tensor([77, 78], device="cuda")
    weighed = ((scores[0, 0] > tau) & seen).any(dim=-1)
    assert weighed[5000]
    output = ta.threshold_rela(q, k, v, beta=beta)[0, 0]
    assert not output[weighed].isfinite().all(dim=-1).any()
    assert torch.allclose(output[~weighed].float(), clean[0, 0][~weighed].float(), rtol=2**-7, atol=1e-6)


def test_a_key_that_is_not_finite_makes_every_row_behind_it_nan() -> None:
    torch.manual_seed(2)
    q, k, v = (normal(1, LISTED, 64, torch.bfloat16) for _ in range(3))
    k[:, :, 6000, 3] = float("nan")
    output = ta.threshold_rela(q, k, v, beta=torch.ones(1, device="cuda"))[0, 0]
    assert output[6000:].isnan().all()
    assert output[:6000].isfinite().all()


def test_rows_whose_blocks_are_all_live_go_by_lists(monkeypatch) -> None:
    """Where lists hold the candidates, such row tiles are not crowded, and without lists they are."""
    torch.manual_seed(3)
    q, k, v = (normal(1, LISTED, 64, torch.bfloat16) for _ in range(3))
    direction = torch.randn(64, device="cuda")
    k[:, :, ::64] = direction.bfloat16()
    q[:] = (2 * direction + torch.randn(LISTED, 64, device="cuda")).bfloat16()
    beta = torch.ones(1, device="cuda")
    counters = ta.screening_counters(1, device="cuda")
    crowded = ta.screening_counters(1, device="cuda")
    ta.threshold_rela(q, k, v, beta=beta, screening_counters=counters)
    monkeypatch.setenv("TDA_SM90_LISTED", "off")
    ta.threshold_rela(q, k, v, beta=beta, screening_counters=crowded)
    assert ta.screening_report(counters)[0].crowded < 0.1  # the first rows have many candidates a block
    assert ta.screening_report(crowded)[0].crowded > 0.5


@pytest.mark.parametrize("length", [8208, 8255])
def test_a_bad_key_in_the_last_tile_stays_inside_the_tensors(monkeypatch, length) -> None:
    """Its tile is a candidate for every row, those behind the end must not reach for keys behind the end."""
    torch.manual_seed(4)
    q, k, v = (normal(1, length, 64, torch.bfloat16) for _ in range(3))
    k[:, :, -5] = float("nan")
    beta = torch.full((1,), 0.8, device="cuda")
    output, survivors = ta.threshold_rela(q, k, v, beta=beta, return_statistics=True)
    assert output[:, :, -5:].isnan().all()
    assert output[:, :, :-5].isfinite().all()
    monkeypatch.setenv("TDA_SM90_LISTED", "off")
    expected, expected_survivors = ta.threshold_rela(q, k, v, beta=beta, return_statistics=True)
    assert torch.equal(output.nan_to_num(7.0), expected.nan_to_num(7.0))
    assert torch.equal(survivors, expected_survivors)
