"""The factors 1/|x| that the Hopper forward saves in the survivor index, and the backward that reads them there."""

from __future__ import annotations

import pytest
import torch
from test_cuda import assert_gradients_keep_the_rule, cotangent_of, cuda_inputs
from test_packed_on_hopper import PACKINGS, documents, everything, filled_memory

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0), reason="no Hopper GPU"
)
OPERATORS = torch.ops.threshold_attention
DTYPES = (torch.bfloat16, torch.float16)
SWITCH = "TDA_SM90_FACTORS"
SAVED, NO_FACTOR = 1, -1.0
OPTIONS = (1.0, 2.0, True)  # kappa, power, normalize
SHAPES = [
    dict(batch=2, query_heads=3, key_heads=3, query_length=512, key_length=512),
    dict(batch=1, query_heads=4, key_heads=2, query_length=300, key_length=1025),
    dict(batch=3, query_heads=2, key_heads=1, query_length=1, key_length=700),
    dict(batch=2, query_heads=4, key_heads=2, query_length=333, key_length=8200),  # with lists, and by candidate lists
]
BETAS = [-0.3, 0.0, 0.5, 0.95]  # from rows that are dense to tiles without a survivor


class Index:
    """Sections of a survivor index (src/attention/cuda/common/survivor_index.h) of a batch: ``state`` (1), int32; the
    factors ``query`` and ``key`` (views, heads, batch, length); and whether the tile of a query row is ``live``."""

    def __init__(self, index: torch.Tensor, inputs: dict[str, torch.Tensor]) -> None:
        batch, query_heads, queries, _ = inputs["q1"].shape
        _, key_heads, keys, _ = inputs["k1"].shape
        views = 2 if "q2" in inputs else 1
        words, heads = index.view(torch.int32), views * query_heads * batch
        tiles, words_per_tile = -(-queries // 64), -(-keys // 512)

        def aligned(count: int) -> int:
            return -(-count // 16) * 16

        slices = words[: heads * tiles * words_per_tile].view(views, query_heads, batch, tiles, words_per_tile)
        last_row = (torch.arange(1, tiles + 1, device="cuda") * 64).clamp_max(queries) - 1
        written = torch.arange(words_per_tile, device="cuda") <= ((keys - queries + last_row) // 512)[:, None]
        live = ((slices != 0) & written).any(-1)
        self.live = live.repeat_interleave(64, -1)[..., :queries]
        state = aligned(slices.numel())
        self.state = words[state : state + 1]
        first = state + 16 + (aligned(heads) + 16 * heads * queries if keys >= 8192 else 0)
        factors = words[first : first + heads * queries + views * key_heads * batch * keys].view(torch.float32)
        self.query = factors[: heads * queries].view(views, query_heads, batch, queries)
        self.key = factors[heads * queries :].view(views, key_heads, batch, keys)


def arguments(inputs: dict[str, torch.Tensor]) -> tuple:
    return tuple(inputs.get(name) for name in ("q1", "k1", "q2", "k2", "v", "beta", "lam"))


def saved_index(inputs: dict[str, torch.Tensor], options=OPTIONS) -> torch.Tensor:
    return OPERATORS.forward(*arguments(inputs), *options, True, False)[2]


def gradients(inputs: dict[str, torch.Tensor], index: torch.Tensor) -> dict[str, torch.Tensor]:
    found = OPERATORS.backward(cotangent_of(inputs["q1"]), *arguments(inputs), index, *OPTIONS, [True] * 7)
    names = ("q1", "k1", "q2", "k2", "v", "beta", "lam")
    return {name: x for name, x in zip(names, found, strict=True) if name in inputs}


def true_factors(inputs: dict[str, torch.Tensor], letter: str) -> torch.Tensor:
    """In the order of the index."""
    tensors = [inputs[letter + n] for n in "12" if letter + n in inputs]
    return torch.stack([1.0 / x.double().norm(dim=-1) for x in tensors]).transpose(1, 2)


def assert_close(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    for name, x in expected.items():
        scale = float(x.abs().nan_to_num(0.0, 0.0, 0.0).max())
        torch.testing.assert_close(ours[name], x, rtol=2e-2, atol=1e-2 * scale, equal_nan=True, msg=name)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_every_row_of_a_live_tile_and_every_key_has_its_factor(shape, views, dtype, dim, beta):
    inputs = cuda_inputs(views, **SHAPES[shape], dim=dim, beta=beta, dtype=dtype, seed=shape)
    with filled_memory():
        index = Index(saved_index(inputs), inputs)
    assert index.state.item() == SAVED
    torch.testing.assert_close(index.key.double(), true_factors(inputs, "k"), rtol=2e-6, atol=0.0)
    expected = true_factors(inputs, "q")
    torch.testing.assert_close(index.query[index.live].double(), expected[index.live], rtol=2e-6, atol=0.0)
    elsewhere = index.query[~index.live]  # right, or not written
    right = (elsewhere.double() / expected[~index.live] - 1.0).abs() < 2e-6
    assert (right | elsewhere.isnan()).all()


@pytest.mark.parametrize("views", [1, 2])
def test_rows_out_of_the_ordinary_have_none(views):
    inputs = cuda_inputs(views, query_length=300, key_length=300, dim=64, beta=-0.3, dtype=torch.bfloat16)
    rows = {3: 0.0, 70: 1e-20, 71: 1e-13, 150: 1e18, 299: float("inf"), 40: float("nan")}
    for name in ("q1", "k1"):
        for row, factor in rows.items():
            inputs[name][:, :, row] *= factor
    index = Index(saved_index(inputs), inputs)
    for factors in (index.query, index.key):
        none = factors[0] == NO_FACTOR
        assert none[..., list(rows)].all()
        assert none.sum(-1).eq(len(rows)).all()


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dim", [64, 80])
@pytest.mark.parametrize("views", [1, 2])
def test_the_size_is_foretold(views, dim, normalize):
    inputs = cuda_inputs(views, query_length=100, key_length=130, key_heads=2, dim=dim, dtype=torch.bfloat16)
    meta = {name: x.to("meta") for name, x in inputs.items()}
    options = (1.0, 2.0, normalize)
    assert saved_index(inputs, options).numel() == saved_index(meta, options).numel()


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("lists", ["on", "off"])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_gradients_agree_with_those_of_computed_factors(monkeypatch, shape, views, dim, lists, beta):
    monkeypatch.setenv("TDA_SM90_LISTS", lists)
    inputs = cuda_inputs(views, **SHAPES[shape], dim=dim, beta=beta, dtype=torch.bfloat16, seed=shape)
    index = saved_index(inputs)
    with filled_memory():  # what was not written would spoil what reads it
        saved = gradients(inputs, saved_index(inputs))
    for name, x in gradients(inputs, index).items():
        assert torch.equal(saved[name], x), name
    assert all(x.isfinite().all() for x in saved.values())
    monkeypatch.setenv(SWITCH, "off")
    computed = gradients(inputs, saved_index(inputs))
    assert_close(saved, computed)
    Index(index, inputs).state.zero_()
    for name, x in gradients(inputs, index).items():
        assert torch.equal(computed[name], x), name


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("views", [1, 2])
def test_the_backward_reads_them(monkeypatch, views, dtype):
    inputs = cuda_inputs(views, query_length=400, key_length=500, key_heads=2, dim=64, beta=0.3, dtype=dtype)
    index = saved_index(inputs)
    expected = gradients(inputs, index)
    for section in ("query", "key"):
        wrong = index.clone()
        getattr(Index(wrong, inputs), section).mul_(1.5)
        assert not torch.allclose(gradients(inputs, wrong)["v"], expected["v"], rtol=2e-2, atol=2e-2), section
        none = index.clone()
        getattr(Index(none, inputs), section).fill_(NO_FACTOR)
        assert_close(gradients(inputs, none), expected)


@pytest.mark.parametrize("power", [1.5, 2.0])
@pytest.mark.parametrize("switch", ["on", "off"])
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("views", [1, 2])
def test_gradients_keep_the_rule(monkeypatch, views, dtype, dim, switch, power):
    monkeypatch.setenv(SWITCH, switch)
    shape = dict(batch=1, query_heads=4, key_heads=2, query_length=300, key_length=1025)
    inputs = cuda_inputs(views, **shape, dim=dim, beta=0.4, dtype=dtype, requires_grad=True)
    assert_gradients_keep_the_rule(inputs, power)


@pytest.mark.parametrize("views", [1, 2])
def test_the_index_of_another_forward_has_none(views):
    """Rows that the copy engine cannot read take the portable forward; its index serves the same backward."""
    inputs = cuda_inputs(views, query_length=400, key_length=500, key_heads=2, dim=64, beta=0.4, dtype=torch.bfloat16)

    def shifted(x: torch.Tensor) -> torch.Tensor:
        wide = torch.zeros(*x.shape[:3], x.shape[3] + 3, dtype=x.dtype, device=x.device)
        wide[..., 1 : 1 + x.shape[3]] = x
        return wide[..., 1 : 1 + x.shape[3]]

    index = saved_index({name: shifted(x) if x.dim() == 4 else x for name, x in inputs.items()})
    assert Index(index, inputs).state.item() != SAVED
    assert_close(gradients(inputs, saved_index(inputs)), gradients(inputs, index))


@pytest.mark.parametrize("place", ["q1", "k1"])
@pytest.mark.parametrize("factor", [0.0, 1e-20, 1e-13, 1e-5, 1e5, 1e17, float("inf"), float("nan")])
@pytest.mark.parametrize("beta", [-0.2, 0.3])
def test_rows_out_of_the_ordinary_have_the_same_gradients(monkeypatch, beta, factor, place):
    inputs = cuda_inputs(1, query_length=300, key_length=300, dim=64, beta=beta, dtype=torch.bfloat16)
    inputs[place][:, :, 70] *= factor
    saved = gradients(inputs, saved_index(inputs))
    monkeypatch.setenv(SWITCH, "off")
    computed = gradients(inputs, saved_index(inputs))
    own = {name: x[place][:, :, 70:71].clone() for name, x in (("ours", saved), ("expected", computed))}
    assert_close({place: own["ours"]}, {place: own["expected"]})  # on a scale of its own
    for x in (saved, computed):
        x[place][:, :, 70] = 0.0
    assert_close(saved, computed)


def test_a_tile_without_a_survivor_beside_one_that_has_some(monkeypatch):
    """The backward takes two row tiles at a time; one of them the forward has left out."""
    inputs = cuda_inputs(2, query_length=512, key_length=512, dim=64, beta=2.0, dtype=torch.bfloat16)
    for n in "12":
        for row in (5, 200, 400):
            inputs["q" + n][:, :, row] = inputs["k" + n][:, :, 3] + 0.2 * inputs["q" + n][:, :, row]
    with filled_memory():
        index = saved_index(inputs)
        saved = gradients(inputs, index)
    live = Index(index, inputs).live[0, 0, 0, ::64]
    assert live.tolist() == [True, False, False, True, False, False, True, False]
    monkeypatch.setenv(SWITCH, "off")
    assert_close(saved, gradients(inputs, saved_index(inputs)))
    for name in ("q1", "q2"):
        rows = (saved[name][:, :, 64:] != 0.0).any(-1)  # rows of the first tile see few keys, and some of them survive
        assert rows.nonzero()[:, -1].unique().tolist() == [200 - 64, 400 - 64]


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("views", [1, 2])
def test_packed_documents(monkeypatch, views, dim, packing):
    packed = documents(packing, views=views, dim=dim)
    with filled_memory():
        saved = everything(packed)
    monkeypatch.setenv(SWITCH, "off")
    computed = everything(packed)
    assert torch.equal(saved["output"], computed["output"])
    assert_close(saved, computed)
