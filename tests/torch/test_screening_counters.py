"""Counters of the screen where no screen runs: on the CPU they are checked, replaced by zeros, and change nothing."""

from __future__ import annotations

import copy
import re
from pathlib import Path

import pytest
import torch
from attention_inputs import one_view, random_inputs, two_views

import threshold_attention as ta
from threshold_attention.screening import COUNTERS

OPERATORS = torch.ops.threshold_attention
HEADER = Path(__file__).resolve().parents[2] / "include" / "tda" / "attention_cuda.h"


def used_counters(heads: int = 4, device: str = "cpu") -> torch.Tensor:
    return torch.full((heads, len(COUNTERS)), 5, dtype=torch.int32, device=device)


def test_columns_are_the_members_of_the_struct():
    body = re.search(r"struct ScreeningCounters \{(.*?)\n\};", HEADER.read_text(), re.DOTALL).group(1)
    assert tuple(re.findall(r"std::int32_t (\w+);", body)) == COUNTERS
    assert torch.equal(ta.screening_counters(3), torch.zeros(3, len(COUNTERS), dtype=torch.int32))


@pytest.mark.parametrize("screening", ["automatic", "always", "never"])
@pytest.mark.parametrize("views", [1, 2])
def test_the_cpu_leaves_zeros_and_computes_the_same(views, screening):
    results = []
    for counters in (None, used_counters()):
        inputs = random_inputs(requires_grad=True)
        args, kwargs = one_view(inputs) if views == 1 else two_views(inputs)
        attend = ta.threshold_rela if views == 1 else ta.differential_threshold_rela
        output, survivors = attend(
            *args, **kwargs, return_statistics=True, screening=screening, screening_counters=counters
        )
        output.square().sum().backward()
        results.append([output, survivors, *(x.grad for x in args)])
        if counters is not None:
            assert not counters.any()
            assert counters._version > 0
    for without, with_counters in zip(*results, strict=True):
        assert torch.equal(without, with_counters)


def test_packed_documents_and_empty_calls_leave_zeros():
    inputs = random_inputs(batch=1)
    rows = [inputs[name][0].transpose(0, 1) for name in ("q1", "k1", "v")]
    offsets = torch.tensor([0, 7, 20], dtype=torch.int32)
    counters = used_counters()
    packed = ta.threshold_rela_varlen(*rows, offsets, offsets, screening="always", screening_counters=counters)
    assert torch.equal(packed, ta.threshold_rela_varlen(*rows, offsets, offsets))
    assert not counters.any()
    for changes in ({"batch": 0}, {"query_length": 0}):
        counters = used_counters()
        args, _ = one_view(random_inputs(**changes))
        ta.threshold_rela(*args, screening_counters=counters)
        assert not counters.any()


def test_autocast_checkpointing_and_inference_mode_take_counters():
    args, kwargs = two_views(random_inputs(requires_grad=True))
    counters = used_counters()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ta.differential_threshold_rela(*args, **kwargs, screening_counters=counters)
    assert not counters.any()
    counters.fill_(5)
    torch.utils.checkpoint.checkpoint(
        lambda *x: ta.differential_threshold_rela(*x, **kwargs, screening_counters=counters), *args, use_reentrant=False
    ).sum().backward()
    assert not counters.any()
    with torch.inference_mode():
        for inside in (counters.fill_(5), used_counters()):
            ta.differential_threshold_rela(*args, **kwargs, screening_counters=inside)
            assert not inside.any()


WRONG_COUNTERS = [
    (lambda c: c[:3], r"screening_counters: expected shape \(4, 7\), one row per query head, got \[3, 7\]"),
    (lambda c: c[:, :6].contiguous(), r"screening_counters: expected shape \(4, 7\).*got \[4, 6\]"),
    (lambda c: c.flatten(), r"screening_counters: expected shape \(4, 7\).*got \[28\]"),
    (lambda c: c.long(), r"screening_counters: expected dtype int32, got Long"),
    (lambda c: c.float(), r"screening_counters: expected dtype int32, got Float"),
    (lambda c: c.T.contiguous().T, r"screening_counters: expected a contiguous tensor, got strides \[1, 4\]"),
]


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize(("change", "message"), WRONG_COUNTERS)
def test_wrong_counters(device, change, message):
    args, kwargs = two_views({name: x.to(device) for name, x in random_inputs().items()})
    counters = change(used_counters(device=device))
    with pytest.raises(ValueError, match=message):
        ta.differential_threshold_rela(*args, **kwargs, screening_counters=counters)
    if device == "cpu":
        assert (counters == 5).all()


def test_wrong_device_and_wrong_choice():
    args, kwargs = one_view(random_inputs())
    with pytest.raises(ValueError, match="screening_counters: expected the device of q, cpu, got meta"):
        ta.threshold_rela(*args, **kwargs, screening_counters=used_counters(device="meta"))
    with pytest.raises(ValueError, match="screening: expected 'automatic', 'always' or 'never', got 'off'"):
        ta.threshold_rela(*args, **kwargs, screening="off")
    with pytest.raises(ValueError, match="screening: expected 'automatic', 'always' or 'never', got 'off'"):
        ta.ThresholdDifferentialAttention(64, 4, screening="off")


@pytest.mark.parametrize("requires_grad", [False, True])
@pytest.mark.parametrize("views", [1, 2])
def test_opcheck(views, requires_grad):
    inputs = random_inputs(requires_grad=requires_grad)
    two = (inputs["q2"], inputs["k2"]) if views == 2 else (None, None)
    lam = inputs["lam"] if views == 2 else None
    arguments = (
        inputs["q1"],
        inputs["k1"],
        *two,
        inputs["v"],
        inputs["beta"],
        lam,
        1.0,
        2.0,
        True,
        requires_grad,
        True,
    )
    options = {"screening": "always", "screening_counters": used_counters()}
    torch.library.opcheck(OPERATORS.forward.default, arguments, options)
    args, kwargs = two_views(inputs)
    torch.library.opcheck(
        OPERATORS.differential_threshold_rela.default, (*args, kwargs["lam"], kwargs["beta"]), options
    )


@pytest.mark.parametrize("training", [False, True])
def test_compiled_calls_replace_counters(training):
    torch._dynamo.reset()

    @torch.compile(fullgraph=True)
    def compiled(args, kwargs, counters):
        first = ta.differential_threshold_rela(*args, **kwargs, screening_counters=counters)
        return first + ta.differential_threshold_rela(*args, **kwargs, screening_counters=counters)

    args, kwargs = two_views(random_inputs(requires_grad=training))
    counters = used_counters()
    output = compiled(args, kwargs, counters)
    assert not counters.any()
    torch.testing.assert_close(output, 2 * ta.differential_threshold_rela(*args, **kwargs))
    if training:
        output.sum().backward()
        assert args[0].grad.isfinite().all()


def test_the_layer_keeps_counters_that_are_not_saved():
    layer = ta.ThresholdDifferentialAttention(64, 4, view_heads="halved")
    assert torch.equal(layer.screening_counters, ta.screening_counters(2))
    assert "screening_counters" not in layer.state_dict()
    layer.screening_counters.fill_(5)
    clone = copy.deepcopy(layer)
    layer(torch.randn(2, 9, 64))
    assert not layer.screening_counters.any()
    assert (clone.screening_counters == 5).all()
    assert layer.to(torch.bfloat16).screening_counters.dtype == torch.int32
    # Counters that were never written come from to_empty().
    materialized = ta.ThresholdDifferentialAttention(64, 4, device="meta").to_empty(device="cpu")
    materialized.reset_parameters()
    assert not materialized.screening_counters.any()


@pytest.mark.parametrize("compiled", [False, True])
def test_the_layer_passes_its_counters_on(compiled):
    torch._dynamo.reset()
    layer = ta.ThresholdDifferentialAttention(64, 4, screening="always")
    layer.screening_counters.fill_(5)
    run = torch.compile(layer, fullgraph=True) if compiled else layer
    run(torch.randn(1, 9, 64)).sum().backward()
    assert not layer.screening_counters.any()


def test_report():
    counters = torch.tensor([[8, 2, 4, 2, 6, 1, 0], [0] * 7, [8, 0, 0, 8, 0, 0, 3]], dtype=torch.int32)
    mixed, unknown, left_out = ta.screening_report(counters)
    assert mixed == ta.HeadScreening(8, 0.25, 0.5, 0.25, 0.75, 0.125, 0)
    assert unknown == ta.HeadScreening(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0)
    assert (left_out.dense, left_out.screened, left_out.unscreened_calls) == (1.0, 0.0, 3)
    with pytest.raises(ValueError, match=r"counters: expected int32 of shape \(heads, 7\), got torch.int64 of shape"):
        ta.screening_report(counters.long())
