"""The search for the beta of a wanted density."""

from __future__ import annotations

import math

import pytest
import torch

from bench.gpu.density import LARGEST_BETA, find_beta, measured_density
from bench.gpu.inputs import Shape, make_inputs
from bench.gpu.measuring import search_beta


def tail(beta: float) -> float:
    """Half of all pairs at 0, falling like a normal tail."""
    return 0.5 * math.erfc(beta * 2.0)


@pytest.mark.parametrize("target", [0.001, 0.01, 0.1, 0.4])
def test_density_is_hit_within_the_tolerance(target):
    assert tail(find_beta(tail, target)) == pytest.approx(target, rel=0.01)


def test_ends_of_the_interval_are_what_is_left():
    assert find_beta(tail, 0.5) == 0.0
    assert find_beta(tail, 0.9) == 0.0
    assert find_beta(tail, 0.0) == LARGEST_BETA
    assert find_beta(lambda beta: 0.3, 0.1) == LARGEST_BETA


def test_few_evaluations_are_enough():
    asked = []
    find_beta(lambda beta: asked.append(beta) or tail(beta), 0.01)
    assert len(asked) <= 16


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"target": 1.5}, "target"), ({"target": -0.1}, "target"), ({"target": 0.1, "smallest": 5.0}, "interval")],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        find_beta(tail, **arguments)


@pytest.mark.parametrize("target", [0.0, 0.01, 0.1, 0.5])
def test_measured_density_of_real_inputs(target):
    shape = Shape(24, 64, 256)
    inputs = make_inputs("random", shape, torch.float32, "cpu", views=1)
    inputs.beta.fill_(search_beta(inputs, shape, target))
    # beta is found on one batch of twelve heads. Row 0 has the threshold 0 whatever beta is.
    assert measured_density(inputs, shape) == pytest.approx(target, rel=0.05, abs=1e-4)
