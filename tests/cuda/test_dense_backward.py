"""The dense kernels of the Hopper backward keep the same rule, and agree with the portable ones."""

from __future__ import annotations

import pytest
import torch
from test_cuda import assert_gradients_keep_the_rule, attend, cotangent_of, cuda_inputs, results

import threshold_attention as ta
from threshold_attention import reference

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="no Hopper GPU"
)
DTYPES = (torch.bfloat16, torch.float16)
SHAPES = [
    dict(batch=2, query_heads=3, key_heads=3, query_length=512, key_length=512),
    dict(batch=1, query_heads=4, key_heads=2, query_length=300, key_length=1025),
    dict(batch=2, query_heads=2, key_heads=1, query_length=129, key_length=129),
    dict(batch=1, query_heads=2, key_heads=2, query_length=1, key_length=700),
]


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize(("power", "beta"), [(2.0, 0.0), (2.0, 0.7), (2.0, -0.3), (1.5, 0.3), (3.0, 0.3)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_gradients_keep_the_rule(shape, views, dtype, power, beta, dim):
    inputs = cuda_inputs(views, **SHAPES[shape], dim=dim, beta=beta, dtype=dtype, requires_grad=True, seed=shape)
    assert_gradients_keep_the_rule(inputs, power)


@pytest.mark.parametrize("place", ["q1", "k1", "v", "cotangent"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("views", [1, 2])
def test_what_is_not_finite_reaches_what_it_reaches_in_the_other_kernels(monkeypatch, views, value, place):
    inputs = cuda_inputs(views, query_length=400, key_length=400, dim=64, beta=0.3, dtype=torch.bfloat16)
    cotangent = cotangent_of(inputs["q1"])
    (cotangent if place == "cotangent" else inputs[place])[0, 0, 130, 7] = value
    inputs = {name: x.requires_grad_() for name, x in inputs.items()}

    def gradients() -> dict[str, torch.Tensor]:
        return results(attend(ta, inputs), inputs, cotangent)

    dense = gradients()
    monkeypatch.setenv("TDA_SM90_DENSE_BACKWARD", "off")
    for name, expected in gradients().items():
        torch.testing.assert_close(dense[name], expected, rtol=2e-2, atol=2e-2, equal_nan=True, msg=name)


@pytest.mark.parametrize("views", [1, 2])
def test_repeats_to_the_bit(views):
    inputs = cuda_inputs(views, query_length=700, key_length=700, dim=64, dtype=torch.bfloat16, requires_grad=True)
    cotangent = cotangent_of(inputs["q1"])
    first = results(attend(ta, inputs), inputs, cotangent)
    for _ in range(20):
        for name, again in results(attend(ta, inputs), inputs, cotangent).items():
            assert torch.equal(first[name], again), name


def test_rows_out_of_range_beside_rows_that_are_not():
    inputs = cuda_inputs(1, query_length=256, key_length=256, dim=64, beta=0.7, dtype=torch.float16)
    with torch.no_grad():
        inputs["q1"][:, :, 5] *= 1e-4  # its norm is below what 16-bit products bear, and its tile nearly dead
        inputs["q1"][:, :, 140] *= 500
    inputs = {name: x.requires_grad_() for name, x in inputs.items()}
    wide = {name: x.detach().double().requires_grad_() for name, x in inputs.items()}
    output = attend(ta, inputs)
    cotangent = cotangent_of(output)
    ours = results(output, inputs, cotangent)
    exact = results(attend(reference, wide), wide, cotangent.double())
    for name in ("v", "k1", "beta"):
        scale = exact[name].abs().max()
        assert (ours[name].double() - exact[name]).abs().max() <= 2e-2 * scale, name
    rows = torch.arange(256, device="cuda") != 5  # that row's gradient is ten thousand times the others'
    scale = exact["q1"][:, :, rows].abs().max()
    assert (ours["q1"].double() - exact["q1"])[:, :, rows].abs().max() <= 2e-2 * scale
