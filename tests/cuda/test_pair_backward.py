"""The backward from the lists of survivors that the Hopper forward writes where rows have few."""

from __future__ import annotations

import pytest
import torch
from test_cuda import assert_gradients_keep_the_rule, attend, cotangent_of, cuda_inputs, results

import threshold_attention as ta

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="no Hopper GPU"
)
DTYPES = (torch.bfloat16, torch.float16)
SHAPES = [  # lists begin at 8,192 keys
    dict(batch=2, query_heads=3, key_heads=3, query_length=200, key_length=8192),
    dict(batch=1, query_heads=4, key_heads=2, query_length=300, key_length=8300),
    dict(batch=3, query_heads=2, key_heads=1, query_length=1, key_length=9001),
]


def sparse_inputs(views: int, *, sink: bool = False, **options) -> dict[str, torch.Tensor]:
    """Inputs of which few pairs survive; with `sink`, every query also attends to key 3."""
    inputs = cuda_inputs(views, beta=0.8, **options)
    for n in ("1", "2")[:views]:
        if sink:
            direction = inputs[f"k{n}"][:, :1, 3:4]
            inputs[f"q{n}"] += 0.8 * direction
            inputs[f"k{n}"][:, :, 3:4] = direction
    return {name: x.requires_grad_() for name, x in inputs.items()}


def gradients(inputs: dict[str, torch.Tensor], **options) -> dict[str, torch.Tensor]:
    output = attend(ta, inputs, **options)
    return results(output, inputs, cotangent_of(output))


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("power", [1.5, 2.0, 3.0])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_gradients_keep_the_rule(shape, views, dtype, power, dim, sink):
    inputs = sparse_inputs(views, **SHAPES[shape], dim=dim, dtype=dtype, seed=shape, sink=sink)
    assert_gradients_keep_the_rule(inputs, power)


@pytest.mark.parametrize("sink", [False, True])
@pytest.mark.parametrize("views", [1, 2])
def test_lists_are_used_and_agree_with_the_other_kernels(monkeypatch, views, sink):
    inputs = sparse_inputs(views, query_length=8200, key_length=8200, dim=64, dtype=torch.bfloat16, sink=sink)
    listed = gradients(inputs)
    monkeypatch.setenv("TDA_SM90_LISTS", "off")
    without = gradients(inputs)
    assert torch.equal(listed["output"], without["output"])
    assert not torch.equal(listed["q1"], without["q1"])  # sums of another order
    for name, expected in without.items():  # key 3 of `sink` sums over all rows, with both signs
        scale = float(expected.abs().max())
        torch.testing.assert_close(listed[name], expected, rtol=2e-2, atol=1e-2 * scale, msg=name)


def assert_agrees_without_lists(monkeypatch, inputs: dict[str, torch.Tensor], *, used: bool) -> None:
    listed = gradients(inputs)
    monkeypatch.setenv("TDA_SM90_LISTS", "off")
    without = gradients(inputs)
    assert torch.equal(listed["q1"], without["q1"]) != used
    for name, expected in without.items():
        scale = float(expected.abs().max())
        torch.testing.assert_close(listed[name], expected, rtol=2e-2, atol=1e-2 * scale, msg=name)


def repeat_key(inputs: dict[str, torch.Tensor], times: int, rows: slice) -> None:
    """``times`` keys of one direction, which the queries of ``rows`` share."""
    with torch.no_grad():
        direction = inputs["k1"][:, :1, 50:51].clone()
        inputs["k1"][:, :, 50 : 50 + times] = direction
        inputs["q1"][:, :, rows] = direction


# A list holds 31 keys of 16 bits, or 15 of 32 bits; random keys add a few.
@pytest.mark.parametrize(
    ("key_length", "times", "used"),
    [(8192, 20, True), (8192, 33, False), (65536, 9, True), (65600, 4, True), (65600, 17, False)],
)
@pytest.mark.parametrize("dim", [64, 128])
def test_rows_as_long_as_a_list(monkeypatch, dim, key_length, times, used):
    options = dict(batch=1, query_heads=1, key_heads=1, query_length=100, key_length=key_length, dim=dim)
    inputs = cuda_inputs(1, beta=0.95, **options, dtype=torch.bfloat16)
    inputs = {name: x.requires_grad_() for name, x in inputs.items()}
    repeat_key(inputs, times, slice(5, 6))
    assert_agrees_without_lists(monkeypatch, inputs, used=used)


def test_more_pairs_than_there_is_room_for_records(monkeypatch):
    options = dict(batch=1, query_heads=2, key_heads=1, query_length=100, key_length=8192, dim=64)
    inputs = cuda_inputs(1, beta=0.95, **options, dtype=torch.bfloat16)
    inputs = {name: x.requires_grad_() for name, x in inputs.items()}
    repeat_key(inputs, 12, slice(None))
    assert_agrees_without_lists(monkeypatch, inputs, used=False)


@pytest.mark.parametrize("keys", [1, 3])  # a block of its own; many of a warp's
@pytest.mark.parametrize("views", [1, 2])
def test_keys_of_many_lengths(monkeypatch, views, keys):
    options = dict(batch=1, query_heads=2, key_heads=1, query_length=600, key_length=8192, dim=64)
    inputs = sparse_inputs(views, **options, dtype=torch.float16)
    with torch.no_grad():
        for n in ("1", "2")[:views]:
            for row in range(0, 600, 2):
                inputs[f"q{n}"][:, :, row] += inputs[f"k{n}"][:, :, 7 + row % keys]
    assert_agrees_without_lists(monkeypatch, inputs, used=True)


@pytest.mark.parametrize("exponent", [58, -36])  # factors beyond 2^-60, and near the largest, 1e12
@pytest.mark.parametrize("place", ["q1", "k1"])
def test_norms_beyond_what_a_record_holds(place, exponent):
    options = dict(batch=1, query_heads=2, key_heads=1, query_length=200, key_length=8192, dim=64)
    inputs = sparse_inputs(1, **options, dtype=torch.bfloat16, sink=True)
    expected = gradients(inputs)
    with torch.no_grad():
        inputs[place][:, :, 3] *= 2.0**exponent
    scaled = gradients(inputs)
    scaled[place][:, :, 3] *= 2.0**exponent  # the gradient shrinks as the row grows
    for name, gradient in scaled.items():
        torch.testing.assert_close(gradient, expected[name], rtol=2e-2, atol=1e-3, msg=name)


@pytest.mark.parametrize("sink", [False, True])
def test_repeats_to_the_bit(sink):
    inputs = sparse_inputs(2, query_length=3000, key_length=8192, dim=64, dtype=torch.bfloat16, sink=sink)
    first = gradients(inputs)
    for _ in range(20):
        for name, again in gradients(inputs).items():
            assert torch.equal(first[name], again), name


@pytest.mark.parametrize("place", ["q1", "k1", "v", "cotangent"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("views", [1, 2])
def test_what_is_not_finite_reaches_what_it_reaches_in_the_other_kernels(monkeypatch, views, value, place):
    inputs = sparse_inputs(views, query_length=400, key_length=8200, dim=64, dtype=torch.bfloat16)
    cotangent = cotangent_of(inputs["q1"])
    with torch.no_grad():
        (cotangent if place == "cotangent" else inputs[place])[0, 0, 8, 7] = value  # the key is seen by all rows
    listed = results(attend(ta, inputs), inputs, cotangent)
    monkeypatch.setenv("TDA_SM90_LISTS", "off")
    for name, expected in results(attend(ta, inputs), inputs, cotangent).items():
        torch.testing.assert_close(listed[name], expected, rtol=2e-2, atol=2e-2, equal_nan=True, msg=name)


@pytest.mark.parametrize("views", [1, 2])
def test_a_key_that_very_many_rows_attend_to(views):
    options = dict(batch=1, query_heads=4, key_heads=2, query_length=3000, key_length=8192, dim=64)
    inputs = sparse_inputs(views, **options, dtype=torch.bfloat16, sink=True)
    assert_gradients_keep_the_rule(inputs, 2.0)
