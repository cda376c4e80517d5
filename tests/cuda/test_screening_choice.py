"""The heads that the Hopper forward screens are chosen from the counters of the last call; no bit depends on it."""

from __future__ import annotations

import pytest
import torch
from test_cuda import attend, cotangent_of, cuda_inputs, results

import threshold_attention as ta

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="no Hopper GPU"
)
DENSE, SPARSE, OPEN = 0.02, 1.2, -0.2  # beta: half of all pairs survive; few do; the threshold is not positive
BETAS = [SPARSE, DENSE, OPEN, DENSE]
CROWDED_HEADS = [1, 3]
BATCH, LENGTH, TILES = 2, 2304, 2304 // 64


def choice_inputs(views: int, *, betas=BETAS, requires_grad=False, **options) -> dict[str, torch.Tensor]:
    shape = dict(batch=BATCH, query_heads=4, key_heads=2, query_length=LENGTH, key_length=LENGTH, dim=64)
    inputs = cuda_inputs(views, **(shape | dict(dtype=torch.bfloat16) | options))
    inputs["beta"] = torch.tensor(betas, device="cuda")
    return {name: x.requires_grad_(requires_grad) for name, x in inputs.items()}


def new_counters() -> torch.Tensor:
    return ta.screening_counters(4, device="cuda")


def unscreened_calls(counters: torch.Tensor) -> list[int]:
    return [head.unscreened_calls for head in ta.screening_report(counters)]


def screened(counters: torch.Tensor) -> list[float]:
    return [head.screened for head in ta.screening_report(counters)]


def assert_counters_add_up(counters: torch.Tensor, row_tiles: int) -> None:
    for tiles, empty, sparse, dense, through_screen, crowded, _ in counters.tolist():
        assert tiles == row_tiles
        assert empty + sparse + dense == tiles
        assert 0 <= crowded <= through_screen <= tiles
        assert 0 <= empty <= through_screen - crowded


def everything(inputs: dict[str, torch.Tensor], **options) -> dict[str, torch.Tensor]:
    """Output, survivors and all gradients of one call."""
    output, survivors = attend(ta, inputs, return_statistics=True, **options)
    return {"survivors": survivors} | results(output, inputs, cotangent_of(output))


def assert_same_bits(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, x in expected.items():
        assert torch.equal(ours[name], x), name


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("views", [1, 2])
def test_dense_heads_are_left_unscreened_and_no_bit_changes(views, dtype, dim):
    inputs = choice_inputs(views, dtype=dtype, dim=dim, requires_grad=True)
    counters = new_counters()
    first = everything(inputs, screening_counters=counters)
    assert_counters_add_up(counters, BATCH * TILES)
    assert unscreened_calls(counters) == [0, 0, 0, 0]
    assert screened(counters) == [1.0, 1.0, 0.0, 1.0]
    report = ta.screening_report(counters)
    assert all(report[head].crowded > 0.95 and report[head].dense > 0.0 for head in CROWDED_HEADS)
    assert report[0].crowded < 0.2
    assert report[0].dense == 0.0
    assert report[2].dense == 1.0

    second = everything(inputs, screening_counters=counters)
    assert_counters_add_up(counters, BATCH * TILES)
    assert unscreened_calls(counters) == [0, 1, 0, 1]
    assert screened(counters) == [1.0, 0.0, 0.0, 0.0]
    assert [head.dense for head in ta.screening_report(counters)] == [0.0, 1.0, 1.0, 1.0]

    assert_same_bits(second, first)
    for screening in ("always", "never"):
        assert_same_bits(everything(inputs, screening=screening), first)


@pytest.mark.parametrize("views", [1, 2])
def test_the_survivor_index_does_not_depend_on_the_choice(memory_of_nan, monkeypatch, views):
    monkeypatch.setenv("TDA_SM90_FACTORS", "off")  # factors of rows that the backward does not read are left out
    inputs = choice_inputs(views)
    second = (inputs["q2"], inputs["k2"]) if views == 2 else (None, None)
    arguments = (inputs["q1"], inputs["k1"], *second, inputs["v"], inputs["beta"], inputs.get("lam"), 1.0, 2.0, True)
    counters = new_counters()
    indices = [
        torch.ops.threshold_attention.forward(*arguments, True, False, *options)[2]
        for options in (("automatic", counters), ("automatic", counters), ("always",), ("never",))
    ]
    assert unscreened_calls(counters) == [0, 1, 0, 1]
    assert indices[0].numel() > 0
    for index in indices[1:]:
        assert torch.equal(index, indices[0])


@pytest.mark.parametrize("views", [1, 2])
def test_gradients_from_lists_do_not_depend_on_the_choice(views):
    """From 8,192 keys the index lists the survivors of rows that have few."""
    inputs = choice_inputs(views, batch=1, query_length=8192, key_length=8192, requires_grad=True)
    counters = new_counters()
    first = everything(inputs, screening_counters=counters)
    assert_same_bits(everything(inputs, screening_counters=counters), first)
    assert unscreened_calls(counters) == [0, 1, 0, 1]
    assert_same_bits(everything(inputs, screening="never"), first)


def test_it_can_be_forced():
    inputs = choice_inputs(1)
    counters = new_counters()
    for _ in range(3):
        attend(ta, inputs, screening="always", screening_counters=counters)
        assert screened(counters) == [1.0, 1.0, 0.0, 1.0]
        assert unscreened_calls(counters) == [0, 0, 0, 0]
    for _ in range(2):
        attend(ta, inputs, screening="never", screening_counters=counters)
        assert_counters_add_up(counters, BATCH * TILES)
        assert screened(counters) == [0.0, 0.0, 0.0, 0.0]
        assert [head.dense for head in ta.screening_report(counters)] == [1.0] * 4
        assert unscreened_calls(counters) == [0, 0, 0, 0]
    attend(ta, inputs, screening_counters=counters)  # nothing is known after a call without a screen
    assert screened(counters) == [1.0, 1.0, 0.0, 1.0]


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("length", [100, 512])
def test_short_calls_are_screened_only_if_forced(length, views, dim):
    inputs = choice_inputs(views, query_length=length, key_length=length, dim=dim, requires_grad=True)
    counters = new_counters()
    expected = everything(inputs, screening="always", screening_counters=counters)
    assert_counters_add_up(counters, BATCH * -(-length // 64))
    assert screened(counters) == [1.0, 1.0, 0.0, 1.0]
    for _ in range(2):
        assert_same_bits(everything(inputs, screening_counters=counters), expected)
        assert_counters_add_up(counters, BATCH * -(-length // 64))
        assert screened(counters) == [0.0] * 4
        assert [head.dense for head in ta.screening_report(counters)] == [1.0] * 4
        assert unscreened_calls(counters) == [0] * 4


def test_the_testing_aid_forces_too(monkeypatch):
    inputs = choice_inputs(1)
    counters = new_counters()
    attend(ta, inputs, screening_counters=counters)
    monkeypatch.setenv("TDA_SM90_SCREEN", "off")
    attend(ta, inputs, screening="always", screening_counters=counters)
    assert screened(counters) == [0.0, 0.0, 0.0, 0.0]
    assert unscreened_calls(counters) == [0, 0, 0, 0]


def test_an_unscreened_head_is_screened_again_and_changes_back():
    inputs = choice_inputs(1)
    counters = new_counters()
    attend(ta, inputs, screening_counters=counters)
    for call in range(1, 16):
        attend(ta, inputs, screening_counters=counters)
        assert unscreened_calls(counters) == [0, call, 0, call]
    inputs["beta"][1] = SPARSE
    attend(ta, inputs, screening_counters=counters)
    assert unscreened_calls(counters) == [0, 0, 0, 0]
    assert screened(counters) == [1.0, 1.0, 0.0, 1.0]
    output = attend(ta, inputs, screening_counters=counters)
    assert unscreened_calls(counters) == [0, 0, 0, 1]
    assert screened(counters) == [1.0, 1.0, 0.0, 0.0]
    assert torch.equal(output, attend(ta, inputs, screening="never"))


@pytest.mark.parametrize("value", [-(2**31), -7, 1, 15, 2**31 - 1])
def test_any_content_is_safe(value):
    inputs = choice_inputs(1)
    expected = attend(ta, inputs)
    counters = torch.full_like(new_counters(), value)
    for _ in range(3):
        assert torch.equal(attend(ta, inputs, screening_counters=counters), expected)
        assert_counters_add_up(counters, BATCH * TILES)


@pytest.mark.parametrize(("length", "keys"), [(1, 1), (1, 3000), (77, 513), (300, 300), (200, 2050)])
@pytest.mark.parametrize("views", [1, 2])
def test_other_lengths(views, length, keys):
    inputs = choice_inputs(views, query_length=length, key_length=keys)
    expected = attend(ta, inputs)
    counters = new_counters()
    for _ in range(3):
        assert torch.equal(attend(ta, inputs, screening_counters=counters), expected)
        assert_counters_add_up(counters, BATCH * ((length + 63) // 64))


@pytest.mark.parametrize("views", [1, 2])
def test_graph_replay_replaces_the_counters(views):
    inputs = choice_inputs(views)
    counters = new_counters()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        attend(ta, inputs, screening_counters=counters)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        output = attend(ta, inputs, screening_counters=counters)

    counters.zero_()
    expected = attend(ta, inputs, screening="always")
    for call in range(18):  # the 17th is screened again
        graph.replay()
        assert unscreened_calls(counters) == [0, call % 16, 0, call % 16]
        assert_counters_add_up(counters, BATCH * TILES)
        assert torch.equal(output, expected)
    inputs["beta"].fill_(SPARSE)
    counters.zero_()
    for _ in range(3):
        graph.replay()
        assert screened(counters) == [1.0] * 4
    assert torch.equal(output, attend(ta, inputs, screening="never"))


def test_back_to_back_calls_read_what_the_last_one_wrote():
    """Nothing waits between the calls, whose kernels overlap."""
    inputs = choice_inputs(2)
    counters = new_counters()
    for _ in range(160):
        attend(ta, inputs, screening_counters=counters)
    assert unscreened_calls(counters) == [0, 159 % 16, 0, 159 % 16]
    assert_counters_add_up(counters, BATCH * TILES)


def test_calls_of_other_kernels_leave_zeros():
    for options in (dict(dtype=torch.float32), dict(dim=80), dict(dim=64, value_dim=128)):
        inputs = choice_inputs(1, **options)
        counters = torch.full_like(new_counters(), 5)
        expected = attend(ta, inputs)
        assert torch.equal(attend(ta, inputs, screening_counters=counters), expected)
        assert not counters.any()
    counters = torch.full_like(new_counters(), 5)
    attend(ta, choice_inputs(1, batch=0), screening_counters=counters)
    assert not counters.any()


def test_packed_documents_are_counted_or_leave_zeros():
    inputs = choice_inputs(1, batch=1)
    rows = [inputs[name][0].transpose(0, 1) for name in ("q1", "k1", "v")]
    offsets = torch.tensor([0, 700, LENGTH], dtype=torch.int32, device="cuda")
    expected = ta.threshold_rela_varlen(*rows, offsets, offsets, beta=inputs["beta"])
    counters = torch.full_like(new_counters(), 5)
    for _ in range(2):
        output = ta.threshold_rela_varlen(*rows, offsets, offsets, beta=inputs["beta"], screening_counters=counters)
        assert torch.equal(output, expected)
        for row_tiles, empty, sparse, dense, *_ in counters.tolist():
            assert empty + sparse + dense == row_tiles


def test_wrong_counters_are_refused():
    inputs = choice_inputs(1)
    with pytest.raises(ValueError, match="screening_counters: expected the device of q, cuda:0, got cpu"):
        attend(ta, inputs, screening_counters=ta.screening_counters(4))
    with pytest.raises(ValueError, match=r"screening_counters: expected shape \(4, 7\)"):
        attend(ta, inputs, screening_counters=ta.screening_counters(2, device="cuda"))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_compiled_calls_keep_counters(requires_grad):
    torch._dynamo.reset()
    inputs = choice_inputs(1, requires_grad=requires_grad)
    counters = new_counters()
    compiled = torch.compile(lambda x, c: attend(ta, x, screening_counters=c) * 2.0, fullgraph=True)
    for call in range(3):
        output = compiled(inputs, counters)
        assert unscreened_calls(counters) == [0, call, 0, call]
    assert torch.equal(output, attend(ta, inputs) * 2.0)


def test_the_layer_keeps_counters():
    torch.manual_seed(0)
    layer = ta.ThresholdDifferentialAttention(256, 4, device="cuda", dtype=torch.bfloat16)
    x = torch.randn(3, 300, 256, device="cuda", dtype=torch.bfloat16)
    first = layer(x)
    assert_counters_add_up(layer.screening_counters, 3 * 5)
    first.float().sum().backward()
    assert torch.equal(layer(x), first)
    layer.screening = "never"
    assert torch.equal(layer(x), first)
    assert screened(layer.screening_counters) == [0.0] * 4
