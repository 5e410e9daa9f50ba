"""Receptive fields as boxes: where they lie, in which order they come, and what becomes of odd maps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from wsod_jax.analysis.map_proposals import FieldOptions, field_boxes
from wsod_jax.errors import ConfigError
from wsod_jax.evaluation.maps import ViewMaps
from wsod_jax.nn.layers import ReceptiveField
from wsod_jax.ops.boxes import pairwise_iou

FIELD = ReceptiveField(size_px=20, stride_px=8, center_px=4.0)
ALL = 10**6


def every(*sizes, aspects=(1.0,), num=ALL, nms_thr=1.0):
    """Return options that leave nothing out."""
    return FieldOptions(num, sizes, aspects, nms_thr)


def view(values, size_px, mirrored=False):
    """Return a view whose map, as the network saw it, was `values`."""
    seen = np.asarray(values, np.float32)
    upright = seen.size * (seen[:, ::-1] if mirrored else seen)
    return ViewMaps(np.zeros((0, 0, 1), np.float32), upright, size_px, mirrored)


def literal(views, image_size, options):
    """Return the boxes cell by cell, before any is left out for being many."""
    height, width = image_size
    found = []
    for seen in views:
        values = seen.proposal_map[:, ::-1] if seen.mirrored else seen.proposal_map
        sy, sx = seen.size_px[0] / height, seen.size_px[1] / width
        for i, row in enumerate(values):
            for j, value in enumerate(row):
                y = FIELD.center_px + i * FIELD.stride_px
                x = FIELD.center_px + j * FIELD.stride_px
                x = seen.size_px[1] - x if seen.mirrored else x
                for size in options.sizes:
                    for aspect in options.aspects:
                        w = FIELD.size_px * size * aspect**0.5 / sx
                        h = FIELD.size_px * size / aspect**0.5 / sy
                        box = (x / sx - w / 2, y / sy - h / 2, x / sx + w / 2, y / sy + h / 2)
                        box = tuple(np.float32(np.clip(box, 0, [width, height] * 2)))
                        if box[2] - box[0] >= 1 and box[3] - box[1] >= 1:
                            found.append((value, box))
    distinct = {}
    for score, box in sorted(found, key=lambda pair: -pair[0]):
        distinct.setdefault(tuple(map(float, box)), score)
    return np.array(list(distinct), np.float32), np.array(list(distinct.values()), np.float32)


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    num_views=st.integers(1, 3),
    sizes=st.lists(st.sampled_from([0.1, 0.25, 0.5, 1.0, 2.0]), min_size=1, max_size=3),
    aspects=st.sampled_from([(1.0,), (0.5, 1.0, 2.0)]),
)
def test_equals_the_loops(seed, shape, num_views, sizes, aspects):
    rng = np.random.default_rng(seed)
    views = []
    for _ in range(num_views):
        size_px = tuple(int(8 * cells - rng.integers(0, 8)) for cells in shape)
        levels = rng.integers(0, 4, shape)  # few values: ties
        views.append(view(levels / max(levels.sum(), 1), size_px, bool(rng.random() < 0.5)))
    options = every(*sizes, aspects=aspects)
    boxes, scores = field_boxes(views, (37, 61), FIELD, options)
    expected, expected_scores = literal(views, (37, 61), options)
    if len(expected):
        np.testing.assert_allclose(boxes, expected, atol=1e-4)
        np.testing.assert_allclose(scores, expected_scores, rtol=1e-6)
    few, few_scores = field_boxes(views, (37, 61), FIELD, every(*sizes, aspects=aspects, num=3))
    np.testing.assert_array_equal(few, boxes[:3])
    np.testing.assert_array_equal(few_scores, scores[:3])


def test_best_cells_come_first_each_with_its_sizes_and_aspects():
    values = [[0.1, 0.2, 0.1], [0.0, 0.5, 0.1]]
    options = every(0.4, 0.8, aspects=(1.0, 4.0), num=5)
    boxes, scores = field_boxes([view(values, (16, 24))], (16, 24), FIELD, options)
    expected = [
        [8, 8, 16, 16],  # cell (1, 1): center (12, 12), side 8
        [4, 10, 20, 14],
        [4, 4, 20, 16],  # side 16, clipped below
        [0, 8, 24, 16],  # 32 x 8, clipped left and right
        [8, 0, 16, 8],  # cell (0, 1)
    ]
    np.testing.assert_allclose(boxes, expected, atol=1e-5)
    np.testing.assert_allclose(scores, [3, 3, 3, 3, 1.2], rtol=1e-6)
    assert boxes.dtype == scores.dtype == np.float32


def test_boxes_are_in_pixels_of_the_original_image():
    values = [[0.0, 1.0]]
    options = every(0.4)
    box, _ = (found[0] for found in field_boxes([view(values, (8, 16))], (16, 64), FIELD, options))
    np.testing.assert_allclose(box, [32, 0, 64, 16])  # 8 px become 32 across and 16 down


@pytest.mark.parametrize("width_px", [24, 20, 17])
def test_a_mirrored_view_finds_the_mirrored_boxes(width_px):
    values = np.random.default_rng(0).random((2, 3))
    options = every(0.3, 0.7)
    upright, scores = field_boxes([view(values, (16, width_px))], (16, 50), FIELD, options)
    mirrored, _ = field_boxes([view(values, (16, width_px), True)], (16, 50), FIELD, options)
    turned = mirrored.copy()
    turned[:, [0, 2]] = 50 - mirrored[:, [2, 0]]
    np.testing.assert_allclose(turned, upright, atol=1e-4)
    assert len(np.unique(scores)) == 6


def test_views_compare_by_how_far_they_exceed_the_uniform_map():
    coarse = view([[0.6, 0.4]], (8, 16))  # 1.2 and 0.8 times the uniform value
    fine = view([[0.2, 0.2, 0.2, 0.4]], (8, 32))  # 0.8 and 1.6
    boxes, scores = field_boxes([coarse, fine], (8, 16), FIELD, every(0.2))
    np.testing.assert_allclose(scores, [1.6, 1.2, 0.8, 0.8, 0.8, 0.8], rtol=1e-6)
    # 4 px of 16 or 32 are 4 or 2 px of the image; of equal scores, the first view's come first
    np.testing.assert_allclose(boxes[:, 0], [13, 2, 10, 1, 5, 9])


def test_equal_boxes_are_kept_once_with_the_best_score():
    values = [[0.1, 0.2], [0.3, 0.4]]
    options = every(100.0, 200.0)
    boxes, scores = field_boxes([view(values, (16, 16))], (30, 40), FIELD, options)
    np.testing.assert_array_equal(boxes, [[0, 0, 40, 30]])
    np.testing.assert_allclose(scores, [1.6])


def test_boxes_outside_the_image_are_left_out():
    """Caffe's pooling makes cells whose center lies beyond the image."""
    values = [[0.1, 0.2, 0.7]]
    boxes, scores = field_boxes([view(values, (8, 17))], (8, 17), FIELD, every(0.2))
    np.testing.assert_allclose(scores, [0.6, 0.3], rtol=1e-6)
    assert boxes[:, 0].tolist() == [10, 2]


@pytest.mark.parametrize(
    ("nms_thr", "kept"),
    [
        (0.0, [1.6, 1.2]),
        (0.3, [1.6, 1.2]),
        (0.5, [1.6, 1.2, 0.8, 0.4]),
        (1.0, [1.6, 1.2, 0.8, 0.4]),
    ],
)
def test_boxes_like_a_better_one_are_left_out(nms_thr, kept):
    """16 px boxes 8 px apart, clipped at the ends: IoU 1/3 between neighbors, 8 / 20 at the ends."""
    values = [[0.1, 0.4, 0.2, 0.3]]
    options = every(0.8, nms_thr=nms_thr)
    boxes, scores = field_boxes([view(values, (8, 32))], (8, 32), FIELD, options)
    np.testing.assert_allclose(scores, kept, rtol=1e-6)
    overlaps = pairwise_iou(boxes, boxes)[~np.eye(len(boxes), dtype=bool)]
    assert (overlaps <= nms_thr).all()


def test_an_overlap_of_the_threshold_is_none_too_many():
    values = [[0.6, 0.4]]  # 16 px boxes 8 px apart, clipped to 12: IoU 8 / 16
    for nms_thr, count in ((0.5, 2), (0.49, 1)):
        options = every(0.8, nms_thr=nms_thr)
        assert len(field_boxes([view(values, (8, 16))], (8, 16), FIELD, options)[0]) == count


@pytest.mark.parametrize("shape", [(0, 0), (0, 3), (2, 0)])
def test_a_map_without_cells_gives_the_whole_image(shape):
    boxes, scores = field_boxes([view(np.zeros(shape), (3, 3))], (30, 40), FIELD, FieldOptions())
    assert boxes.tolist() == [[0, 0, 40, 30]] and scores.tolist() == [0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nms_thr": 1.5}, "nms_thr.* 1.5.* 0 .* 1"),
        ({"nms_thr": -0.1}, "nms_thr"),
        ({"num": 0}, "num .* 0"),
        ({"sizes": ()}, r"sizes .* \(\)"),
        ({"sizes": (1.0, 0.0)}, "sizes are.*> 0"),
        ({"sizes": (float("inf"),)}, "sizes are"),
        ({"aspects": (float("nan"),)}, "aspects are"),
        ({"aspects": [-1.0]}, "aspects are"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        FieldOptions(**options)
