"""Object Energy against literal loops, and by hand where there is nothing to share."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import localization as oracle
from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.object_energy import EnergyMetrics, object_energy


def random_boxes(rng, count):
    """Draw boxes on a grid of half pixels, some of them partly or wholly outside a small image."""
    corner = rng.integers(-4, 20, (count, 2))
    return np.concatenate([corner, corner + rng.integers(0, 14, (count, 2))], axis=1) / 2


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 5))
def test_energy_agrees_with_the_loops(seed, h, w, num_boxes):
    rng = np.random.default_rng(seed)
    energy_map, boxes = rng.integers(0, 3, (h, w)), random_boxes(rng, num_boxes)
    expected = oracle.object_energy(energy_map.tolist(), boxes.tolist())
    np.testing.assert_allclose(object_energy(energy_map, boxes), expected)


def test_pixels_under_several_objects_count_once_and_centers_decide():
    energy_map = np.arange(12.0).reshape(3, 4)
    twice = np.array([[0, 0, 2, 1], [1, 0, 2, 3]])
    assert object_energy(energy_map, twice) == (0 + 1 + 5 + 9) / 66
    assert (
        object_energy(energy_map, np.array([[0.5, 0, 1.5, 1]])) == 0
    )  # x1 at a center is in, x2 is not
    assert object_energy(energy_map, np.array([[0.6, 0, 1.6, 1]])) == 1 / 66
    assert object_energy(energy_map, np.array([[-5, -5, 50, 50]])) == 1
    assert object_energy(energy_map, np.array([[9, 9, 12, 12]])) == 0
    assert object_energy(1e-30 * energy_map, twice) == pytest.approx(15 / 66)


def test_nothing_to_share_is_nan_and_leaves_the_mean():
    assert np.isnan(object_energy(np.zeros((3, 4)), [[0, 0, 2, 2]]))
    assert np.isnan(object_energy(np.ones((3, 4)), np.zeros((0, 4))))
    metrics = EnergyMetrics(np.array([0.5, np.nan, 1.0]))
    assert (metrics.mean, metrics.num_images, metrics.num_left_out) == (0.75, 2, 1)
    nothing = EnergyMetrics(np.array([np.nan]))
    assert np.isnan(nothing.mean) and nothing.num_images == 0


def test_what_has_no_energy_is_refused():
    box = np.array([[0, 0, 2, 2]])
    for wrong in (np.full((2, 2), -1.0), np.full((2, 2), np.nan), np.ones((2, 2, 3))):
        with pytest.raises(DataError, match="below 0"):
            object_energy(wrong, box)
