"""Maps of an image: points and boxes equal a literal loop; what joins, what is read, and maps that say nothing."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.oracles import evals as box_oracle
from tests.oracles import localization as oracle
from wsod_jax.errors import DataError
from wsod_jax.evaluation import maps as maps_module
from wsod_jax.evaluation.maps import ImageMaps, MapReading, ViewMaps, joined

CLASSES = 3
SIZE_PX = (48, 64)  # of views; reading maps does not look at it
SIZE = (7, 9)  # of the image
NOTHING_SMALL = MapReading(min_side_px=0.0, nms_thr=1.0)  # joining drops only scores <= 0


def view(seed, cells=(3, 4), classes=CLASSES):
    rng = np.random.default_rng(seed)
    cams = rng.normal(size=(*cells, classes)).astype(np.float32)
    proposal_map = rng.random(cells).astype(np.float32)
    return ViewMaps(cams, proposal_map / max(proposal_map.mean(), 1e-6), SIZE_PX)


def image_maps(
    *views, reading=NOTHING_SMALL, predicted=(), classes=range(CLASSES), size=SIZE, **more
):
    """Return maps whose classes `classes` are read, and `predicted` predicted."""
    is_predicted = np.isin(np.arange(CLASSES), predicted)
    return ImageMaps(views, np.array(list(classes), int), is_predicted, size, reading, **more)


def pairs(boxes):
    """Return [(box, score)] of boxes and scores."""
    return [
        (box.tolist(), pytest.approx(float(s), rel=1e-5, abs=1e-6))
        for box, s in zip(*boxes, strict=True)
    ]


@pytest.mark.parametrize("how", ["align_corners", "half_pixel"])
@pytest.mark.parametrize("size", [(7, 9), (6, 4), (1, 1)])
@pytest.mark.parametrize("seeds", [(0,), (1, 2), (3, 4, 5)])
def test_points_and_boxes_equal_the_loop(how, size, seeds):
    views = [
        view(seed, cells) for seed, cells in zip(seeds, [(3, 4), (5, 2), (2, 6)], strict=False)
    ]
    found = image_maps(*views, reading=MapReading(how), size=size)
    for c in range(CLASSES):
        listed = [v.cams[..., c].tolist() for v in views]
        point, box, components = oracle.located(listed, size, how)
        assert found.point(c) == point
        assert pairs(found.tightest(c)) == [box]
        assert pairs(found.components(c)) == components


def test_components_of_separate_views_and_of_other_detectors_join():
    """In one NMS over all of them, not one after the other."""
    first, second, third = (
        view(seed, cells) for seed, cells in ((6, (3, 4)), (7, (4, 5)), (8, (2, 3)))
    )
    reading = MapReading(nms_thr=0.4, min_side_px=2.0, separate_views=True)
    other = image_maps(third, reading=dataclasses.replace(reading, separate_views=False))
    found = image_maps(first, second, reading=reading, others=(other,))
    for c in range(CLASSES):
        parts = sum(
            (
                oracle.located([v.cams[..., c].tolist()], SIZE, "align_corners")[2]
                for v in (first, second, third)
            ),
            [],
        )
        parts = [(b, s) for b, s in parts if s > 0 and min(b[2] - b[0], b[3] - b[1]) >= 2]
        kept = box_oracle.greedy_nms([b for b, _ in parts], [s for _, s in parts], 0.4)
        assert pairs(found.components(c)) == [parts[i] for i in kept]
        assert found.point(c) == image_maps(first, second).point(c)  # others bring boxes only
    alone = image_maps(first, reading=reading)  # one part is taken as it is
    assert (
        pairs(alone.components(0))
        == oracle.located([first.cams[..., 0].tolist()], SIZE, "align_corners")[2]
    )


def test_a_class_that_was_not_read_is_an_error():
    found = image_maps(view(0, classes=2), classes=[0, 2])
    whole = image_maps(view(0, classes=2), classes=[0, 1])
    assert found.tightest(2)[0].tolist() == whole.tightest(1)[0].tolist()
    for c in (1, 3):
        with pytest.raises(KeyError, match=f"class {c}"):
            found.point(c)
    nothing = image_maps(view(0, classes=0), classes=[])
    with pytest.raises(KeyError, match="class 0"):
        nothing.cam(0)
    assert [len(column) for column in nothing.detections()] == [0, 0, 0]


def test_a_class_is_resized_once(monkeypatch):
    calls = []

    def counted(values, *rest):
        calls.append(values.shape)
        return resize(values, *rest)

    resize = maps_module.resize_map
    monkeypatch.setattr(maps_module, "resize_map", counted)
    found = image_maps(view(0), view(1), predicted=(0, 2))
    found.detections()
    for _ in range(2):
        for read in (found.point, found.tightest, found.components):
            read(0), read(2)
    assert len(calls) == 2 * 2


@pytest.mark.parametrize("mode", ["tightest", "components"])
def test_detections_are_the_boxes_of_predicted_classes_the_best_first(mode):
    reading = dataclasses.replace(NOTHING_SMALL, boxes=mode)
    found = image_maps(view(9), predicted=(0, 2), reading=reading)
    boxes, scores, classes = found.detections()
    assert set(classes.tolist()) == {0, 2} and (np.diff(scores) <= 0).all()
    for c in (0, 2):
        own = getattr(found, mode)(c)
        listed = sorted(zip(own[1].tolist(), own[0].tolist(), strict=True), key=lambda one: -one[0])
        of_class = classes == c
        assert list(zip(scores[of_class].tolist(), boxes[of_class].tolist(), strict=True)) == listed
    assert boxes.dtype == scores.dtype == np.float32
    nothing = image_maps(view(9)).detections()
    assert nothing[0].shape == (0, 4) and nothing[2].shape == (0,)


def test_predicted_classes():
    scores = np.array([0.5, 0.51, 0.2])
    assert MapReading().predicted(scores).tolist() == [False, True, False]
    best = MapReading(predicted_thr=None)
    assert best.predicted(np.array([0.2, 0.3, 0.3])).tolist() == [False, True, False]
    assert best.predicted(np.array([0.0])).tolist() == [True]


def test_maps_that_say_nothing():
    """A constant map, and one without cells: the center, the whole image."""
    even = ViewMaps(np.full((2, 3, CLASSES), 0.1, np.float32), np.ones((2, 3), np.float32), SIZE_PX)
    empty = ViewMaps(np.zeros((0, 4, CLASSES), np.float32), np.zeros((0, 4), np.float32), SIZE_PX)
    for values, score, objectness in ((even, 0.1, 1.0), (empty, 0.0, 0.0)):
        found = image_maps(values)
        assert found.point(0) == (4.5, 3.5)
        for boxes in (found.tightest(0), found.components(0)):
            assert pairs(boxes) == [([0, 0, 9, 7], score)]
        np.testing.assert_allclose(found.objectness(), np.full(SIZE, objectness), rtol=1e-6)
    assert image_maps(empty).is_too_small and image_maps(empty, empty).is_too_small
    assert not image_maps(even).is_too_small and not image_maps(empty, even).is_too_small


def test_maps_that_are_not_finite_are_an_error():
    broken = dataclasses.replace(view(0), cams=np.full((2, 2, CLASSES), np.nan, np.float32))
    with pytest.raises(DataError, match="diverged"):
        image_maps(broken).point(0)


@pytest.mark.parametrize("how", ["align_corners", "half_pixel"])
def test_objectness_is_the_mean_of_all_views(how):
    views = [view(seed, cells) for seed, cells in ((0, (3, 4)), (1, (2, 6)))]
    resized = [oracle.resize(v.proposal_map.tolist(), *SIZE, how) for v in views]
    found = image_maps(*views, reading=MapReading(how)).objectness()
    np.testing.assert_allclose(found, np.mean(resized, axis=0), rtol=1e-6)


# Joining


def random_part(rng, count):
    """Draw boxes on a coarse grid and few scores, some of them 0 or below."""
    corner = rng.integers(0, 6, (count, 2))
    boxes = np.concatenate([corner, corner + rng.integers(1, 6, (count, 2))], axis=1)
    return boxes.astype(np.float32), (rng.integers(-1, 8, count) / 8).astype(np.float32)


@given(
    st.integers(0, 10**6),
    st.lists(st.integers(0, 20), min_size=1, max_size=3),
    st.sampled_from([0.0, 0.5, 0.7]),
    st.sampled_from([0.0, 3.0]),
)
def test_joining_agrees_with_the_greedy_walk(seed, counts, nms_thr, min_side_px):
    rng = np.random.default_rng(seed)
    parts = [random_part(rng, count) for count in counts]
    rows = [
        (box, score)
        for boxes, scores in parts
        for box, score in zip(boxes.tolist(), scores.tolist(), strict=True)
        if score > 0 and min(box[2] - box[0], box[3] - box[1]) >= min_side_px
    ]
    kept = box_oracle.greedy_nms([box for box, _ in rows], [score for _, score in rows], nms_thr)
    boxes, scores = joined(parts, nms_thr=nms_thr, min_side_px=min_side_px)
    assert list(zip(boxes.tolist(), scores.tolist(), strict=True)) == [rows[i] for i in kept]
    assert boxes.shape == (len(kept), 4)


def test_joining_at_the_thresholds():
    rows = [
        (0.9, [0, 0, 50, 100]),
        (0.8, [0, 0, 50, 70]),  # IoU of exactly 0.7 survives
        (0.7, [0, 0, 50, 99]),
        (0.6, [200, 0, 249, 100]),  # a side of 49
        (0.5, [200, 0, 250, 50]),  # overlaps only the one dropped
        (0.0, [400, 0, 500, 100]),
        (-0.1, [600, 0, 700, 100]),
    ]
    part = np.array([box for _, box in rows], np.float32), np.array([score for score, _ in rows])
    assert joined([part], nms_thr=0.7, min_side_px=50.0)[1].tolist() == [0.9, 0.8, 0.5]


def test_equal_scores_rank_by_part_then_row():
    first = np.array([[1, 0, 100, 100], [2, 0, 100, 100]], np.float32), np.array([0.5, 0.5])
    second = np.array([[0, 0, 100, 100]], np.float32), np.array([0.5])
    for parts, box in (([first, second], [1, 0, 100, 100]), ([second, first], [0, 0, 100, 100])):
        assert joined(parts, nms_thr=0.7, min_side_px=50.0)[0].tolist() == [box]
