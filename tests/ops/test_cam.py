"""Maps to points and boxes: against literal loops, and by hand where a map says nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jaxtyping import TypeCheckError

from tests.oracles import localization as oracle
from wsod_jax.errors import DataError
from wsod_jax.ops.cam import (
    cam_point,
    component_boxes,
    foreground,
    map_boxes,
    resize_map,
)

HOWS = ["align_corners", "half_pixel"]
side = st.integers(1, 7)


def random_map(seed, h, w):
    return np.random.default_rng(seed).integers(-3, 4, (h, w)).astype(np.float64)


@given(st.integers(0, 10**6), side, side, side, side, st.sampled_from(HOWS))
def test_resize_agrees_with_the_loops(seed, h, w, height, width, how):
    values = random_map(seed, h, w)
    expected = oracle.resize(values.tolist(), height, width, how)
    np.testing.assert_allclose(resize_map(values, height, width, how), expected, atol=1e-12)


def test_corners_are_aligned_by_default():
    resized = resize_map(np.array([[0.0, 1.0], [2.0, 3.0]]), 3, 5)
    assert resized.dtype == np.float64
    assert resized[0].tolist() == [0, 0.25, 0.5, 0.75, 1] and resized[2, 4] == 3
    assert resize_map(np.array([[5.0, 1.0]]), 1, 1).tolist() == [[5.0]]  # one pixel: the first cell


def test_half_pixel_goes_on_unchanged_beyond_the_border_cells():
    assert resize_map(np.array([[0.0, 4.0]]), 1, 4, "half_pixel").tolist() == [[0, 1, 3, 4]]
    assert resize_map(np.array([[5.0, 1.0]]), 1, 1, "half_pixel").tolist() == [[3.0]]


@pytest.mark.parametrize("how", HOWS)
def test_equal_cells_give_equal_pixels_and_mirrored_maps_mirror(how):
    even = resize_map(np.full((3, 5), 0.1), 37, 23, how)
    assert (even == 0.1).all()
    assert (resize_map(np.array([[0.3]]), 4, 6, how) == 0.3).all()
    values = random_map(0, 3, 5)
    mirrored = resize_map(values[::-1, ::-1], 19, 31, how)[::-1, ::-1]
    np.testing.assert_allclose(mirrored, resize_map(values, 19, 31, how), atol=1e-12)


@pytest.mark.parametrize("how", HOWS)
def test_classes_are_resized_one_by_one(how):
    values = np.stack([random_map(seed, 3, 4) for seed in range(2)], axis=-1)
    resized = resize_map(values, 9, 6, how)
    assert resized.shape == (9, 6, 2)
    for c in range(2):
        np.testing.assert_array_equal(resized[..., c], resize_map(values[..., c], 9, 6, how))


def test_what_cannot_be_resized_is_refused():
    with pytest.raises(DataError, match="pixel"):
        resize_map(np.zeros((2, 2)), 0, 3)
    with pytest.raises(DataError, match=r"\(2,\)"):
        resize_map(np.zeros(2), 3, 3)
    with pytest.raises(DataError, match="not finite"):
        resize_map(np.array([[np.nan]]), 3, 3)
    with pytest.raises((ValueError, TypeCheckError), match="half_pixel"):
        resize_map(np.zeros((2, 2)), 3, 3, "corners")


def test_point_is_the_center_of_the_first_highest_pixel():
    cam = np.zeros((4, 6))
    cam[1, 4] = cam[2, 0] = 1
    assert cam_point(cam) == (4.5, 1.5)
    assert cam_point(-1 - cam[::-1]) == (0.5, 0.5)


@pytest.mark.parametrize("value", [0.0, 0.1, -0.3, 1e-30, -1e30])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (50, 33)])
def test_constant_map_is_all_foreground_and_points_to_the_center(value, shape):
    cam = np.full(shape, value)
    height, width = shape
    assert cam_point(cam) == (width / 2, height / 2)
    for factor in (0.5, 1.0, 2.0):
        assert foreground(cam, factor).all()
    for mode in ("tightest", "components"):
        boxes, scores = map_boxes(cam, mode)
        assert boxes.tolist() == [[0, 0, width, height]] and boxes.dtype == np.float32
        np.testing.assert_allclose(scores, [value], rtol=1e-6)


def test_rounding_of_the_mean_does_not_empty_a_constant_map():
    values = [np.full((h, w), 0.1) for h in range(1, 12) for w in range(1, 12)]
    assert any((v < v.mean()).all() for v in values)  # the plain comparison would fail
    assert all(foreground(v).all() for v in values)


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (2, 0)])
def test_map_without_cells_is_the_whole_image(shape):
    cam = resize_map(np.zeros(shape), 5, 9)
    assert cam_point(cam) == (4.5, 2.5)
    for mode in ("tightest", "components"):
        boxes, scores = map_boxes(cam, mode)
        assert boxes.tolist() == [[0, 0, 9, 5]] and scores.tolist() == [0]
    assert resize_map(np.zeros((*shape, 3)), 5, 9).shape == (5, 9, 3)


def test_foreground_reaches_the_threshold_and_scales_it():
    cam = np.array([[0.0, 1.0, 2.0, 1.0]])  # mean 1
    assert foreground(cam).tolist() == [[False, True, True, True]]
    assert foreground(cam, 1.5).tolist() == [[False, False, True, False]]
    assert foreground(cam, 9.0).tolist() == [[False, False, True, False]]  # never empty
    assert foreground(cam, 0.0).all()
    assert foreground(cam - 2).tolist() == [[False, True, True, True]]
    assert foreground(np.array([[1.0, 1 - 1e-6]])).tolist() == [[True, False]]


@given(st.integers(0, 10**6), st.integers(1, 9), st.integers(1, 9), st.sampled_from([4, 8]))
def test_components_agree_with_flooding(seed, h, w, connectivity):
    rng = np.random.default_rng(seed)
    mask, cam = rng.random((h, w)) < rng.random(), rng.normal(size=(h, w))
    boxes, scores = component_boxes(mask, cam, connectivity)
    expected = oracle.component_boxes(mask.tolist(), cam.tolist(), connectivity)
    assert boxes.tolist() == [box for box, _ in expected]
    np.testing.assert_allclose(scores, [mean for _, mean in expected], rtol=1e-5, atol=1e-6)


def test_components_join_at_corners_only_when_asked():
    mask = np.eye(3, dtype=bool)
    cam = np.diag([1.0, 2.0, 6.0])
    boxes, scores = component_boxes(mask, cam)
    assert boxes.tolist() == [[0, 0, 1, 1], [1, 1, 2, 2], [2, 2, 3, 3]]
    assert scores.tolist() == [1, 2, 6]
    boxes, scores = component_boxes(mask, cam, 8)
    assert boxes.tolist() == [[0, 0, 3, 3]] and scores.tolist() == [3]
    boxes, scores = component_boxes(np.zeros((3, 3), bool), cam)
    assert boxes.shape == (0, 4) and scores.shape == (0,)


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 8))
def test_tightest_covers_the_components_and_scores_their_mean(seed, h, w):
    cam = random_map(seed, h, w)
    tight, score = map_boxes(cam)
    boxes, scores = map_boxes(cam, "components")
    joined = np.concatenate([boxes[:, :2].min(axis=0), boxes[:, 2:].max(axis=0)])
    assert tight.tolist() == [joined.tolist()]
    mask = cam >= cam.mean() - 1e-12
    np.testing.assert_allclose(score, [cam[mask].mean()], rtol=1e-6)
    assert scores.min() - 1e-5 <= score[0] <= scores.max() + 1e-5


def test_unknown_choices_and_wrong_maps_are_refused():
    with pytest.raises((ValueError, TypeCheckError), match="components"):
        map_boxes(np.zeros((2, 2)), "boxes")
    with pytest.raises((ValueError, TypeCheckError), match="4, 8"):
        map_boxes(np.zeros((2, 2)), "components", connectivity=6)
    with pytest.raises(DataError, match="resize_map"):
        map_boxes(np.zeros((2, 2, 3)))
    with pytest.raises(DataError, match="not finite"):
        cam_point(np.array([[0.0, np.inf]]))
    with pytest.raises(DataError, match="agree"):
        component_boxes(np.zeros((2, 3), bool), np.zeros((2, 2)))
