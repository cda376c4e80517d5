"""The density of survivors, and the beta that gives a wanted one."""

from __future__ import annotations

from collections.abc import Callable

from bench.gpu.built_package import built_package
from bench.gpu.inputs import Inputs, Shape

# At beta 4 the second row already has the threshold 0.59 for D = 64, 4.7 standard deviations of a random score.
LARGEST_BETA = 4.0


def measured_density(inputs: Inputs, shape: Shape) -> float:
    """The share of causal pairs of the first view with a non-zero weight, counted by the operator itself."""
    attend = built_package().threshold_rela
    _, survivors = attend(inputs.q[0], inputs.k[0], inputs.v, beta=inputs.beta, return_statistics=True)
    return survivors.double().sum().item() / shape.pairs


def find_beta(
    density: Callable[[float], float],
    target: float,
    *,
    smallest: float = 0.0,
    largest: float = LARGEST_BETA,
    tolerance: float = 0.01,
    steps: int = 40,
) -> float:
    """A beta in [smallest, largest] with ``density(beta)`` within ``tolerance`` (relative) of ``target``.

    ``density`` falls with beta. Where no beta of the interval reaches the target, its nearer end is returned: the
    caller reports the density that it measures.

    Raises:
        ValueError: ``target`` is no share, or the interval is empty.
    """
    if not 0.0 <= target <= 1.0:
        raise ValueError(f"target: expected a density from 0 to 1, got {target}")
    if not smallest < largest:
        raise ValueError(f"smallest, largest: expected an interval, got {smallest}, {largest}")
    if density(smallest) <= target:
        return smallest
    if target == 0.0 or density(largest) >= target:
        return largest
    low, high = smallest, largest
    for _ in range(steps):
        middle = 0.5 * (low + high)
        found = density(middle)
        if abs(found - target) <= tolerance * target:
            return middle
        low, high = (middle, high) if found > target else (low, middle)
    return 0.5 * (low + high)
