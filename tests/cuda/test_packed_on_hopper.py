"""Packed documents on the Hopper kernels: the bits of a call for each document, and nothing leaks into neighbours."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
from packed_inputs import Packed, cotangent_of, gradients, packed_inputs

import threshold_attention as ta

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="no Hopper GPU"
)
DTYPES = (torch.bfloat16, torch.float16)
OPEN, SPARSE = 0.0, 1.0  # beta: nothing is screened, and every pair with a positive score survives; few do
# Tiles are of 16, 64, 128 and 256 rows or keys: documents begin at odd rows and end around the tiles.
PACKINGS = {
    "around tiles": [(1, 1), (63, 63), (65, 65), (127, 127), (129, 129), (255, 255), (257, 257), (64, 64), (256, 256)],
    "fewer queries than keys": [(5, 40), (1, 130), (33, 64), (64, 65), (1, 1), (100, 513), (257, 600), (0, 19), (2, 3)],
    "empty documents": [(0, 0), (7, 7), (0, 300), (40, 70), (0, 0), (300, 301), (0, 0)],
    "long among short": [(3, 3), (1500, 2100), (1, 1), (64, 64), (0, 0), (300, 301), (2049, 2049)],
}
LARGE = {
    "thousand short": [(1 + d * 37 % 200, 1 + d * 37 % 200) for d in range(1000)],
    "four long": [(16384, 16384), (4095, 4097), (9000, 9000), (1, 16000)],
}


def documents(packing: str, *, views: int = 2, dim: int = 64, betas=(SPARSE, OPEN, 0.3, SPARSE), **options) -> Packed:
    """GQA, with dense heads beside sparse ones."""
    shape = dict(query_heads=4, key_heads=2, dim=dim, device="cuda", views=views)
    packed = packed_inputs((PACKINGS | LARGE)[packing], **(shape | dict(dtype=torch.bfloat16) | options))
    with torch.no_grad():
        packed.tensors["beta"].copy_(torch.tensor(betas))
    return packed


def everything(packed: Packed, cotangent: torch.Tensor | None = None, **options) -> dict[str, torch.Tensor]:
    output, survivors = packed.attend(ta, return_statistics=True, **options)
    return {"output": output.detach(), "survivors": survivors} | gradients(output, packed, cotangent)


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], names=None) -> None:
    for name in names or first:
        assert torch.equal(first[name], second[name]), name


@contextlib.contextmanager
def filled_memory() -> Iterator[None]:
    """Memory that PyTorch hands out is filled with NaN, workspaces and the survivor index with ones."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.utils.deterministic.fill_uninitialized_memory
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def one_by_one(packed: Packed, **options) -> dict[str, torch.Tensor]:
    """The same by a call for each document; without beta and lam, which are sums."""
    results = {name: torch.zeros_like(x) for name, x in packed.tensors.items() if x.dim() == 3 and name in packed.names}
    results |= {"output": torch.zeros_like(packed.tensors["q1"])}
    heads, total = packed.tensors["q1"].shape[1], packed.tensors["q1"].shape[0]
    results["survivors"] = torch.zeros(heads, total, dtype=torch.int32, device="cuda")
    cotangent = cotangent_of(results["output"])
    for (queries, keys), case in zip(packed.rows(), packed.documents(), strict=True):
        if queries.start == queries.stop:
            continue
        t = {name: x.detach().requires_grad_() for name, x in case.items()}
        if packed.views == 1:
            output, survivors = ta.threshold_rela(
                t["q1"], t["k1"], t["v"], beta=t["beta"], return_statistics=True, **options
            )
        else:
            tensors = (t[name] for name in ("q1", "k1", "q2", "k2", "v"))
            output, survivors = ta.differential_threshold_rela(
                *tensors, beta=t["beta"], lam=t["lam"], return_statistics=True, **options
            )
        results["output"][queries] = output[0].detach().transpose(0, 1)
        results["survivors"][:, queries] = survivors[0]
        names = [name for name in packed.names if t[name].dim() == 4]
        grads = torch.autograd.grad(output, [t[name] for name in names], cotangent[queries].transpose(0, 1)[None])
        for name, gradient in zip(names, grads, strict=True):
            results[name][queries if name[0] == "q" else keys] = gradient[0].transpose(0, 1)
    return results


@pytest.mark.parametrize("power", [2.0, 3.0])
@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("views", [1, 2])
def test_documents_have_the_bits_of_calls_of_their_own(views, dtype, dim, packing, power):
    packed = documents(packing, views=views, dim=dim, dtype=dtype)
    expected = one_by_one(packed, power=power)
    assert_same(expected, everything(packed, **packed.longest(), power=power))
    assert_same(expected, everything(packed, power=power))


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("views", [1, 2])
def test_documents_without_normalization_have_the_bits_of_calls_of_their_own(views, packing):
    packed = documents(packing, views=views, betas=[60.0, OPEN, 10.0, 60.0])  # scores are 64 times as large
    assert_same(one_by_one(packed, normalize=False), everything(packed, normalize=False))


@pytest.mark.parametrize("switch", ["TDA_SM90_SCREEN", "TDA_SM90_DENSE"])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("views", [1, 2])
def test_outputs_do_not_depend_on_the_kernel(monkeypatch, views, dim, switch):
    packed = documents("long among short", views=views, dim=dim)
    expected = everything(packed)
    monkeypatch.setenv(switch, "off")
    assert_same(expected, everything(packed), ("output", "survivors"))


@pytest.mark.parametrize("views", [1, 2])
def test_no_bit_depends_on_the_heads_that_are_screened(views):
    crowded = 0.02  # half of all pairs survive
    packed = documents("long among short", views=views, betas=[SPARSE, crowded, OPEN, crowded])
    expected = everything(packed)
    counters = ta.screening_counters(4, device="cuda")
    for unscreened in ([0, 0, 0, 0], [0, 1, 0, 1]):
        assert_same(expected, everything(packed, screening_counters=counters))
        assert [head.unscreened_calls for head in ta.screening_report(counters)] == unscreened
    assert_same(expected, everything(packed, screening="never"))


def test_documents_that_are_dense_beside_sparse_ones():
    """Keys that equal their queries in one document of a head, and nothing alike in the others."""
    packed = documents("long among short", betas=[0.6] * 4)
    rows, keys = packed.rows()[1]
    with torch.no_grad():
        direction = torch.ones(64, device="cuda")
        for name, part in (("q1", rows), ("q2", rows), ("k1", keys), ("k2", keys)):
            packed.tensors[name][part] += 3 * direction
    expected = one_by_one(packed)
    assert_same(expected, everything(packed))


@pytest.mark.parametrize("betas", [[SPARSE] * 4, [OPEN] * 4], ids=["sparse", "dense"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("place", ["inputs", "cotangent", "all"])
def test_a_document_full_of_what_is_not_finite_disturbs_no_other(place, views, dim, value, betas):
    packed = documents("fewer queries than keys", views=views, dim=dim, betas=betas)
    cotangent = cotangent_of(packed.tensors["q1"])
    before = everything(packed, cotangent)
    spoiled = (1, 3, 6)
    rows = packed.rows()
    for queries, keys in (rows[d] for d in spoiled):
        if place != "inputs":
            cotangent[queries] = value
        if place != "cotangent":
            with torch.no_grad():
                for name in packed.names:
                    if packed.tensors[name].dim() == 3:
                        packed.tensors[name][queries if name[0] == "q" else keys] = value
    after = everything(packed, cotangent)
    for d, (queries, keys) in enumerate(rows):
        if d in spoiled:
            continue
        assert torch.equal(before["survivors"][:, queries], after["survivors"][:, queries])
        for name in ("output", *(n for n in packed.names if packed.tensors[n].dim() == 3)):
            part = queries if name == "output" or name[0] == "q" else keys
            assert torch.equal(before[name][part], after[name][part]), (d, name)
    queries = rows[spoiled[0]][0]
    if place != "cotangent":
        assert after["output"][queries].isnan().all()


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("views", [1, 2])
def test_every_output_is_written(views, dim, packing):
    packed = documents(packing, views=views, dim=dim)
    expected = everything(packed)
    with filled_memory():
        assert_same(expected, everything(packed))


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("views", [1, 2])
def test_rows_behind_the_last_offset_belong_to_nobody(views, dim):
    packed = documents("long among short", views=views, dim=dim)
    expected = everything(packed)
    last = 4  # documents from here are empty, and lie where it ends
    ends = {}
    for side, offsets in (("q", packed.cu_seqlens_q), ("k", packed.cu_seqlens_k)):
        offsets[last:] = offsets[last].clone()
        ends[side] = int(offsets[last])
    with filled_memory():
        ours = everything(packed)
    assert torch.equal(ours["survivors"][:, : ends["q"]], expected["survivors"][:, : ends["q"]])
    for name in ("output", *(n for n in packed.names if packed.tensors[n].dim() == 3)):
        end = ends["q" if name == "output" or name[0] == "q" else "k"]
        assert torch.equal(ours[name][:end], expected[name][:end]), name
        assert ours[name][end:].isnan().all(), name
    assert ours["beta"].isfinite().all()


# What is added to which offsets of "long among short", to those of queries and of keys; or bounds of the lengths. Then
# the documents that break the rules, and the others whose rows are not what they were.
BROKEN = {
    "before the first row": ({0: (-5, -5)}, {}, {0}, set()),
    "behind the last row": ({7: (1000, 1000)}, {}, {6}, set()),
    "more queries than keys": ({3: (1, 0)}, {}, {2}, {3}),
    "longer than the bounds": ({}, {"max_seqlen_q": 301, "max_seqlen_k": 301}, {1, 6}, set()),
    "zeros behind the last": (
        {4: (-1568, -2168), 5: (-1568, -2168), 6: (-1868, -2469), 7: (-3917, -4518)},
        {},
        {3, 4, 5, 6},
        set(),
    ),
}


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("broken", BROKEN)
def test_the_forward_takes_documents_that_break_the_rules_as_empty(broken, views, dim):
    packed = documents("long among short", views=views, dim=dim)
    changes, bounds, empty, changed = BROKEN[broken]
    rows = packed.rows()
    with torch.no_grad(), filled_memory():
        expected, counts = packed.attend(ta, return_statistics=True)
        for place, (queries, keys) in changes.items():
            packed.cu_seqlens_q[place] += queries
            packed.cu_seqlens_k[place] += keys
        ours, own_counts = packed.attend(ta, return_statistics=True, **bounds)
    for d, (queries, _) in enumerate(rows):
        if d in empty:
            assert ours[queries].isnan().all(), d
        elif d not in changed:
            assert torch.equal(ours[queries], expected[queries]), d
            assert torch.equal(own_counts[:, queries], counts[:, queries]), d


@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("views", [1, 2])
def test_repeats_to_the_bit(views, dim):
    packed = documents("long among short", views=views, dim=dim)
    first = everything(packed)
    for _ in range(20):
        assert_same(first, everything(packed))


@pytest.mark.parametrize("packing", LARGE)
def test_many_short_documents_and_few_long_ones(packing):
    packed = documents(packing)
    ours, rows = everything(packed, **packed.longest()), packed.rows()
    counters = ta.screening_counters(4, device="cuda")
    packed.attend(ta, screening_counters=counters)
    tiles = sum((q + 63) // 64 for q, _ in LARGE[packing])
    assert counters[:, 0].tolist() == [tiles] * 4  # they come from the Hopper kernels alone
    cases = packed.documents()
    for d in sorted({0, 1, len(rows) // 2, len(rows) - 1}):
        t = cases[d]
        tensors = (t[name] for name in ("q1", "k1", "q2", "k2", "v"))
        alone, survivors = ta.differential_threshold_rela(
            *tensors, beta=t["beta"], lam=t["lam"], return_statistics=True
        )
        assert torch.equal(ours["output"][rows[d][0]], alone[0].transpose(0, 1)), d
        assert torch.equal(ours["survivors"][:, rows[d][0]], survivors[0]), d


@pytest.mark.parametrize("views", [1, 2])
def test_gradients_of_documents_whose_own_calls_go_by_lists(views):
    """From 8,192 keys a call adds up listed pairs, in another order; compared as in test_pair_backward.py."""
    packed = documents("four long", views=views, betas=[0.8] * 4)
    alone, together = one_by_one(packed), everything(packed, **packed.longest())
    assert_same(alone, together, ("output", "survivors"))
    assert not torch.equal(alone["q1"], together["q1"])  # lists are used
    for d, (queries, keys) in enumerate(packed.rows()):
        for name in (n for n in packed.names if packed.tensors[n].dim() == 3):
            rows = queries if name[0] == "q" else keys
            expected, ours = alone[name][rows], together[name][rows]
            if keys.stop - keys.start < 8192:
                assert torch.equal(ours, expected), (d, name)
            scale = float(expected.abs().max())
            torch.testing.assert_close(ours, expected, rtol=2e-2, atol=1e-2 * scale, msg=f"document {d}, {name}")


def capture(call: Callable) -> tuple:
    """A graph of the call, and what it returned: memory that replays write."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        return graph, call()


def other_offsets(packed: Packed) -> list[torch.Tensor]:
    """Of nine documents in the same rows, queries and keys alike."""
    total = sum(q for q, _ in packed.lengths)
    cuts = ([5, 5, 6, 7, 300, 301, 900, 1000], [total] * 8, [0] * 8, [1, 2, 3, 4, 5, 6, 7, total - 1])
    return [torch.tensor([0, *own, total], dtype=torch.int32, device="cuda") for own in cuts]


def replay(graph: torch.cuda.CUDAGraph, packed: Packed, offsets: torch.Tensor) -> None:
    packed.cu_seqlens_q.copy_(offsets)
    packed.cu_seqlens_k.copy_(offsets)
    graph.replay()


def one_by_one_at(packed: Packed, offsets: torch.Tensor) -> dict[str, torch.Tensor]:
    packed.lengths = [(b - a, b - a) for a, b in itertools.pairwise(offsets.tolist())]
    return one_by_one(packed)


@pytest.mark.parametrize("dim", [64, 128])
def test_one_graph_serves_other_offsets(dim):
    packed = documents("around tiles", dim=dim)
    cotangent = cotangent_of(packed.tensors["q1"])
    graph, captured = capture(lambda: everything(packed, cotangent))
    for offsets in other_offsets(packed):
        replay(graph, packed, offsets)
        assert_same(one_by_one_at(packed, offsets), captured)


@pytest.mark.parametrize("dim", [64, 128])
def test_forwards_that_are_replayed_back_to_back_read_their_own_offsets(dim):
    packed = documents("around tiles", dim=dim)
    all_offsets, replayed = other_offsets(packed), []
    with torch.no_grad():
        graph, captured = capture(lambda: packed.attend(ta, return_statistics=True))
        for offsets in all_offsets * 3:
            replay(graph, packed, offsets)
            replayed.append([x.clone() for x in captured])
    expected = [one_by_one_at(packed, offsets) for offsets in all_offsets]
    for (output, survivors), own in zip(replayed, expected * 3, strict=True):
        assert_same(own, {"output": output, "survivors": survivors}, ("output", "survivors"))
