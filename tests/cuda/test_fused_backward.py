"""The fused Hopper backward of dense heads: it keeps the rule, agrees with the kernels that compute rows and columns
one after the other, repeats to the bit, and hands back what is not finite."""

from __future__ import annotations

import pytest
import torch
from test_cuda import assert_gradients_keep_the_rule, attend, cotangent_of, cuda_inputs, results

import threshold_attention as ta

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="no Hopper GPU"
)
SHAPES = [
    dict(batch=2, query_heads=3, key_heads=3, query_length=512, key_length=512),
    dict(batch=1, query_heads=4, key_heads=2, query_length=385, key_length=385),
    dict(batch=2, query_heads=2, key_heads=1, query_length=129, key_length=129),
    dict(batch=1, query_heads=2, key_heads=2, query_length=64, key_length=64),
    dict(batch=1, query_heads=2, key_heads=2, query_length=1, key_length=1),
]
QUERIES = ("q1", "q2")


@pytest.fixture(autouse=True)
def short_heads_are_fused(monkeypatch):
    monkeypatch.setenv("TDA_SM90_FUSED_BACKWARD", "on")


def dense_inputs(views: int, beta: float = 0.1, **options) -> dict[str, torch.Tensor]:
    return cuda_inputs(views, dim=64, beta=beta, dtype=torch.bfloat16, **options)


def gradients(inputs: dict[str, torch.Tensor], cotangent: torch.Tensor) -> dict[str, torch.Tensor]:
    leaves = {name: x.detach().requires_grad_() for name, x in inputs.items()}
    return results(attend(ta, leaves), leaves, cotangent)


def gradients_of_two_kernels(monkeypatch, inputs, cotangent) -> dict[str, torch.Tensor]:
    with monkeypatch.context() as patch:
        patch.setenv("TDA_SM90_FUSED_BACKWARD", "off")
        return gradients(inputs, cotangent)


def assert_close(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, x in expected.items():
        torch.testing.assert_close(ours[name], x, rtol=2e-2, atol=2e-2, equal_nan=True, msg=name)


@pytest.mark.parametrize(("power", "beta"), [(2.0, 0.0), (2.0, 0.3), (2.0, -0.3), (1.5, 0.1), (1.0, -0.2), (3.0, 0.1)])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_gradients_keep_the_rule(shape, views, power, beta):
    assert_gradients_keep_the_rule(dense_inputs(views, beta, **SHAPES[shape], requires_grad=True, seed=shape), power)


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("length", [8192, 8255])
def test_long_dense_heads_are_fused(monkeypatch, views, length):
    monkeypatch.delenv("TDA_SM90_FUSED_BACKWARD")
    inputs = dense_inputs(views, query_heads=2, key_heads=1, query_length=length, key_length=length)
    cotangent = cotangent_of(inputs["q1"])
    ours = gradients(inputs, cotangent)
    expected = gradients_of_two_kernels(monkeypatch, inputs, cotangent)
    assert_close(ours, expected)
    # The order of sums tells which kernels ran.
    assert all(not torch.equal(ours[name], expected[name]) for name in QUERIES if name in inputs)
    for name, again in gradients(inputs, cotangent).items():
        assert torch.equal(ours[name], again), name


def test_sums_of_many_heads_in_the_same_place_keep_apart(monkeypatch):
    """More heads than have sums at a time (FusedHeads::slots), so that each place serves several."""
    inputs = dense_inputs(1, batch=40, query_heads=8, key_heads=8, query_length=1024, key_length=1024)
    cotangent = cotangent_of(inputs["q1"])
    ours = gradients(inputs, cotangent)
    assert_close(ours, gradients_of_two_kernels(monkeypatch, inputs, cotangent))
    for _ in range(50):
        for name, again in gradients(inputs, cotangent).items():
            assert torch.equal(ours[name], again), name


@pytest.mark.parametrize("views", [1, 2])
def test_sparse_heads_beside_dense_ones_stay_with_their_kernels(monkeypatch, views):
    inputs = dense_inputs(views, query_heads=8, key_heads=4, query_length=700, key_length=700)
    inputs["beta"] = torch.tensor([0.1, 0.2, 1.2, 1.3, -0.1, 0.0, 0.1, 1.5], device="cuda")
    cotangent = cotangent_of(inputs["q1"])
    ours = gradients(inputs, cotangent)
    expected = gradients_of_two_kernels(monkeypatch, inputs, cotangent)
    assert_close(ours, expected)
    for name in QUERIES[:views]:
        same = [torch.equal(x, y) for x, y in zip(ours[name][0], expected[name][0], strict=True)]
        assert same[2:4] == [True, True], name
        assert same[0:2] == same[4:6] == [False, False], name


@pytest.mark.parametrize("place", ["q1", "k1", "v", "cotangent"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("views", [1, 2])
def test_what_is_not_finite_reaches_what_it_reaches_in_the_other_kernels(monkeypatch, views, value, place):
    inputs = dense_inputs(views, query_heads=4, key_heads=2, query_length=400, key_length=400)
    cotangent = cotangent_of(inputs["q1"])
    (cotangent if place == "cotangent" else inputs[place])[0, 0, 130, 7] = value
    ours = gradients(inputs, cotangent)
    assert_close(ours, gradients_of_two_kernels(monkeypatch, inputs, cotangent))


@pytest.mark.parametrize("views", [1, 2])
def test_zero_vectors_and_extreme_norms(monkeypatch, views):
    inputs = dense_inputs(views, query_heads=3, key_heads=3, query_length=300, key_length=300)
    inputs["q1"][0, 0, 5] = 0.0
    inputs["k1"][0, 0, 7] = 0.0
    inputs["q1"][0, 1, 9] *= 1e20
    inputs["k1"][0, 2, 200] *= 1e-18
    cotangent = cotangent_of(inputs["q1"])
    ours, expected = gradients(inputs, cotangent), gradients_of_two_kernels(monkeypatch, inputs, cotangent)
    for name, x in expected.items():
        # Gradients of such rows are divided by their norms.
        scale = x.double().abs().amax(-1, keepdim=True).clamp_min(1.0) if x.dim() == 4 else 1.0
        torch.testing.assert_close(ours[name].double() / scale, x.double() / scale, rtol=2e-2, atol=2e-2, msg=name)


def test_a_gradient_that_nobody_wants_leaves_the_work_to_the_other_kernels(monkeypatch):
    inputs = dense_inputs(1, query_length=500, key_length=500)
    cotangent = cotangent_of(inputs["q1"])

    def gradient_of_queries() -> torch.Tensor:
        leaves = inputs | {"q1": inputs["q1"].detach().requires_grad_()}
        return torch.autograd.grad(attend(ta, leaves), leaves["q1"], cotangent)[0]

    ours = gradient_of_queries()
    monkeypatch.setenv("TDA_SM90_FUSED_BACKWARD", "off")
    assert torch.equal(ours, gradient_of_queries())
