"""Object Energy of proposals and over the size of objects, against literal loops; centers as points."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.evaluation.test_average_precision import truth_of
from tests.evaluation.test_energy import random_boxes
from tests.evaluation.test_pointing import listed, random_truth
from tests.oracles import localization as oracle
from wsod_jax.analysis.baselines import center_points
from wsod_jax.analysis.energy import (
    boxes_energy_map,
    energy_by_size,
    object_area_ratios,
    proposal_energies,
)
from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.object_energy import EnergyMetrics


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
    np.testing.assert_array_equal(fit.energies, energies)


@pytest.mark.parametrize(
    "sides, energies, coefficients",
    [
        ([10, 10], [0.2, 0.4], [0.3, 0, 0, 0]),
        ([10, 20, 20], [0.2, 0.5, 0.5], [0.1, 0.4, 0, 0]),
        ([10, 0], [0.2, np.nan], [0.2, 0, 0, 0]),
        ([10, 0], [np.nan, np.nan], [np.nan] * 4),
        ([], [], [np.nan] * 4),
    ],
)
def test_few_images_lower_the_degree(sides, energies, coefficients):
    fit = energy_by_size(np.array(energies), *squares(sides))
    np.testing.assert_allclose(fit.coefficients, coefficients, atol=1e-9)


@given(st.integers(0, 10**6), st.integers(0, 14))
def test_area_ratios_agree_with_the_loops(seed, num_objects):
    rng, truth = random_truth(seed, num_objects)
    sizes = rng.integers(4, 16, (4, 2))
    np.testing.assert_allclose(
        object_area_ratios(truth, sizes),
        [
            oracle.union_area([box for i, _, box, _ in listed(truth) if i == n], *size)
            / size.prod()
            for n, size in enumerate(sizes)
        ],
    )


def test_what_has_no_energy_is_refused():
    box = np.array([[0, 0, 2, 2]])
    for scores in ([-0.1], [np.inf], [1.0, 2.0]):
        with pytest.raises(DataError, match="scores"):
            boxes_energy_map(box, np.array(scores), 4, 4)
    truth, sizes = squares([2, 4])
    with pytest.raises(DataError, match="boxes of 1 "):
        proposal_energies([box], None, truth, sizes)
    with pytest.raises(DataError, match="scores of 1 "):
        proposal_energies([box, box], [np.ones(1)], truth, sizes)
    with pytest.raises(DataError, match="height, width"):
        proposal_energies([box, box], None, truth, sizes[:1])
    with pytest.raises(DataError, match="per image"):
        energy_by_size(np.ones(3), truth, sizes)


def test_center_points_of_every_class():
    points = center_points(np.array([[10, 40], [7, 3]]), 2)
    assert points.tolist() == [[[20, 5], [20, 5]], [[1.5, 3.5], [1.5, 3.5]]]
    assert center_points(np.zeros((0, 2)), 2).shape == (0, 2, 2)
