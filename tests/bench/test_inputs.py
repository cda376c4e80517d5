"""The input regimes of the GPU benchmark are what their definitions say, every time."""

from __future__ import annotations

import math

import pytest
import torch

from bench.gpu.inputs import TRAINED_DIM, TRAINED_HEADS, TRAINED_LENGTH, Shape, make_inputs, plant

SHAPE = Shape(heads=24, dim=64, length=256)


def planted(seed: int = 1337) -> tuple[torch.Tensor, torch.Tensor]:
    return plant(SHAPE, torch.Generator().manual_seed(seed), "cpu")


def test_every_planted_direction_has_eight_keys_in_a_new_order():
    _, keys = planted()
    assert keys.shape == (2, 12, 256, 64)
    # Two keys of one direction have a cosine near 1 / 1.04; keys of two directions lie far apart.
    near = (keys @ keys.transpose(-1, -2)) > 0.75
    assert (near.sum(-1) == 8).all()
    # The first keys of the heads that belong together are not the same in each head.
    assert len({tuple(row.tolist()) for row in near[:, :, 0].reshape(-1, 256)}) == 24


def test_every_planted_query_is_near_the_eight_keys_of_one_direction():
    queries, keys = planted()
    assert (((queries @ keys.transpose(-1, -2)) > 0.75).sum(-1) == 8).all()


def test_planted_rows_are_unit_vectors():
    for rows in planted():
        torch.testing.assert_close(rows.norm(dim=-1), torch.ones(rows.shape[:-1]))


def test_planted_needs_eight_keys_for_each_direction():
    with pytest.raises(ValueError, match="multiple of 8, got 100"):
        plant(Shape(12, 64, 100), torch.Generator(), "cpu")


@pytest.mark.parametrize("regime", ["random", "planted-8", "dense"])
def test_inputs_are_the_same_every_time(regime):
    first, again = (make_inputs(regime, SHAPE, torch.bfloat16, "cpu") for _ in range(2))
    torch.manual_seed(5)
    third = make_inputs(regime, SHAPE, torch.bfloat16, "cpu")
    for other in (again, third):
        for x, y in zip((*first.q, *first.k, first.v), (*other.q, *other.k, other.v), strict=True):
            assert torch.equal(x, y)
    assert not torch.equal(first.q[0], first.q[1])
    assert first.q[0].dtype == torch.bfloat16
    assert first.beta.tolist() == [0.0 if regime == "dense" else 1.0] * 12


def test_one_view_of_two():
    inputs = make_inputs("random", SHAPE, torch.float32, "cpu")
    assert inputs.of_view(2).q == [inputs.q[1]]
    assert inputs.of_view(2).v is inputs.v


def test_unknown_regime():
    with pytest.raises(ValueError, match="'uniform'"):
        make_inputs("uniform", SHAPE, torch.float32, "cpu")


def test_heads_split_into_batches():
    assert Shape(48, 64, 1).split() == (4, 12)
    assert Shape(32, 128, 1).split() == (2, 16)
    assert Shape(5, 64, 1).split() == (1, 5)
    assert Shape(3, 64, 4).pairs == 3 * (1 + 2 + 3 + 4)


@pytest.fixture
def trained_folder(tmp_path):
    size = (1, TRAINED_HEADS, TRAINED_LENGTH, TRAINED_DIM)
    for n, name in enumerate(("q1", "k1", "q2", "k2", "v")):
        values = torch.arange(math.prod(size), dtype=torch.float32).remainder(251).add(n).to(torch.bfloat16)
        raw = values.view(torch.uint8).numpy().tobytes()
        (tmp_path / f"layer4_{name}_1x{TRAINED_HEADS}x{TRAINED_LENGTH}x{TRAINED_DIM}.bf16").write_bytes(raw)
    return tmp_path


def test_trained_inputs_are_the_first_tokens_of_the_files_and_heads_repeat(trained_folder):
    inputs = make_inputs("trained", Shape(24, 64, 100), torch.float32, "cpu", trained=trained_folder)
    assert inputs.k[1].shape == (2, 12, 100, 64)
    assert torch.equal(inputs.k[1][0], inputs.k[1][1])
    assert inputs.k[1][0, 1, 0, 0].item() == (TRAINED_LENGTH * TRAINED_DIM) % 251 + 3
    assert inputs.beta[0].item() == pytest.approx(1.0352)
    assert inputs.lam[0].item() == pytest.approx(0.3789)


def test_trained_inputs_say_what_is_wrong(trained_folder):
    with pytest.raises(FileNotFoundError, match="--trained DIR"):
        make_inputs("trained", SHAPE, torch.float32, "cpu")
    with pytest.raises(ValueError, match="got 24, 128, 256"):
        make_inputs("trained", Shape(24, 128, 256), torch.float32, "cpu", trained=trained_folder)
    short = trained_folder / "layer4_q1_1x12x4096x64.bf16"
    short.write_bytes(b"12")
    with pytest.raises(ValueError, match=r"layer4_q1_1x12x4096x64\.bf16: expected 6291456 bytes of bfloat16, got 2"):
        make_inputs("trained", SHAPE, torch.float32, "cpu", trained=trained_folder)
    short.unlink()
    with pytest.raises(FileNotFoundError, match="layer4_q1_1x12x4096x64"):
        make_inputs("trained", SHAPE, torch.float32, "cpu", trained=trained_folder)
