"""Object Energy against literal loops, and by hand where there is nothing to share."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.test_average_precision import truth_of
from tests.oracles import localization as oracle
from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.object_energy import (
    EnergyMetrics,
    boxes_energy_map,
    energy_by_size,
    object_energy,
    proposal_energies,
)


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


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 9))
def test_maps_of_proposals_agree_with_the_loops(seed, h, w, num_boxes):
    rng = np.random.default_rng(seed)
    boxes, scores = random_boxes(rng, num_boxes), rng.random(num_boxes) * (rng.random() < 0.9)
    expected = oracle.boxes_energy_map(boxes.tolist(), scores.tolist(), h, w)
    energy_map = boxes_energy_map(boxes, scores, h, w)
    np.testing.assert_allclose(energy_map, expected, atol=1e-6)
    np.testing.assert_array_equal(energy_map == 0, np.array(expected) == 0)  # no crumbs
    counted = boxes_energy_map(boxes, None, h, w)
    np.testing.assert_array_equal(
        counted, oracle.boxes_energy_map(boxes.tolist(), [1] * num_boxes, h, w)
    )


def test_pixels_under_several_objects_count_once_and_centres_decide():
    energy_map = np.arange(12.0).reshape(3, 4)
    twice = np.array([[0, 0, 2, 1], [1, 0, 2, 3]])
    assert object_energy(energy_map, twice) == (0 + 1 + 5 + 9) / 66
    assert (
        object_energy(energy_map, np.array([[0.5, 0, 1.5, 1]])) == 0
    )  # x1 at a centre is in, x2 is not
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


def test_proposals_of_a_set():
    truth = truth_of([(0, 0, [0, 0, 2, 2], False), (2, 0, [0, 0, 4, 4], True)], num_images=4)
    sizes = np.array([[4, 4], [4, 4], [4, 8], [1, 1]])
    boxes = [np.array([[0, 0, 4, 4], [0, 0, 2, 2]])] * 2 + [np.zeros((0, 4)), np.zeros((0, 4))]
    np.testing.assert_array_equal(
        proposal_energies(boxes, None, truth, sizes), [8 / 20, np.nan, np.nan, np.nan]
    )
    scores = [np.array([1.0, 4.0])] * 2 + [np.zeros(0)] * 2
    assert proposal_energies(boxes, scores, truth, sizes)[0] == 20 / 32
    boxes[2] = np.array([[0, 0, 8, 4]])
    scores[2] = np.zeros(1)
    energies = proposal_energies(boxes, scores, truth, sizes)
    assert np.isnan(energies[2])  # boxes, but all of score 0
    assert EnergyMetrics(energies).num_left_out == 3


def squares(sides, size=20):
    """Return a truth of one square per image, and the image sizes."""
    rows = [(i, 0, [0, 0, s, s], False) for i, s in enumerate(sides) if s]
    return truth_of(rows, num_images=len(sides)), np.full((len(sides), 2), size)


def test_fit_recovers_a_cubic():
    truth, sizes = squares([2, 5, 8, 12, 15, 20, 0])
    ratios = np.array([2, 5, 8, 12, 15, 20, 0]) ** 2 / 400
    energies = 0.1 + 0.5 * ratios + 0.7 * ratios**2 - 0.4 * ratios**3
    energies[-1] = np.nan
    fit = energy_by_size(energies, truth, sizes)
    np.testing.assert_allclose(fit.ratios, ratios)
    np.testing.assert_allclose(fit.coefficients, [0.1, 0.5, 0.7, -0.4], atol=1e-9)
    assert fit.degree == 3
    np.testing.assert_array_equal(fit.energies, energies)


@pytest.mark.parametrize(
    "sides, energies, degree, coefficients",
    [
        ([10, 10], [0.2, 0.4], 0, [0.3, 0, 0, 0]),
        ([10, 20, 20], [0.2, 0.5, 0.5], 1, [0.1, 0.4, 0, 0]),
        ([10, 0], [0.2, np.nan], 0, [0.2, 0, 0, 0]),
        ([10, 0], [np.nan, np.nan], -1, [np.nan] * 4),
        ([], [], -1, [np.nan] * 4),
    ],
)
def test_few_images_lower_the_degree(sides, energies, degree, coefficients):
    fit = energy_by_size(np.array(energies), *squares(sides))
    assert fit.degree == degree
    np.testing.assert_allclose(fit.coefficients, coefficients, atol=1e-9)


def test_what_has_no_energy_is_refused():
    box = np.array([[0, 0, 2, 2]])
    for wrong in (np.full((2, 2), -1.0), np.full((2, 2), np.nan), np.ones((2, 2, 3))):
        with pytest.raises(DataError, match="none below 0"):
            object_energy(wrong, box)
    for scores in ([-0.1], [np.inf], [1.0, 2.0]):
        with pytest.raises(DataError, match="one per box"):
            boxes_energy_map(box, np.array(scores), 4, 4)
    truth, sizes = squares([2, 4])
    with pytest.raises(DataError, match="boxes of 1 images"):
        proposal_energies([box], None, truth, sizes)
    with pytest.raises(DataError, match="scores of 1 images"):
        proposal_energies([box, box], [np.ones(1)], truth, sizes)
    with pytest.raises(DataError, match="height, width"):
        proposal_energies([box, box], None, truth, sizes[:1])
    with pytest.raises(DataError, match="one per image"):
        energy_by_size(np.ones(3), truth, sizes)
