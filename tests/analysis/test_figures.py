"""Figures of an evaluation: which panels, boxes and files there are, whatever maps and detections look like."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from tests.evaluation.test_maps import image_maps, view
from wsod_jax.analysis.figures import (
    draw_cam,
    draw_detections,
    draw_maps,
    draw_outcome,
    draw_precision_recall,
)
from wsod_jax.config.eval_options import EvalOptions
from wsod_jax.data.images import read_image
from wsod_jax.data.records import BoxAnnotations, ImageRecord, ImageSet
from wsod_jax.evaluation.evaluators import BoxAp
from wsod_jax.evaluation.maps import ViewMaps
from wsod_jax.evaluation.metrics.tables import GroundTruth
from wsod_jax.runs.annotated_images import AnnotatedImages
from wsod_jax.runs.scoring import PassOutcome, score
from wsod_jax.types import ImageResult, Mask
from wsod_jax.viz.canvas import FALSE, HIT, NEUTRAL, TRUTH

NAMES = ("cat", "dog", "hen")
SHAPES = {0: (7, 9), 1: (6, 4), 2: (1, 1), 3: (5, 8)}
TRUTH_ROWS = GroundTruth(
    [0, 0, 2], [1, 2, 0], [[1, 1, 5, 6], [0, 0, 9, 7], [0, 0, 1, 1]], [0, 1, 0], 4, 3
)


def pixels(shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 3), np.uint8)


def count(image, color):
    """Count the pixels of a color."""
    return int((image == np.array(color, np.uint8)).all(axis=-1).sum())


# Maps


def empty(cells):
    return ViewMaps(np.zeros((*cells, 3), np.float32), np.zeros(cells, np.float32), (32, 32))


def map_result(index, views, scores, classes):
    scores = np.array(scores, np.float32)
    cut = tuple(dataclasses.replace(v, cams=v.cams[..., list(classes)]) for v in views)
    maps = image_maps(
        *cut, classes=classes, size=SHAPES[index], predicted=np.flatnonzero(scores > 0.5)
    )
    return ImageResult(index, SHAPES[index], image_scores=scores, maps=maps)


@pytest.mark.parametrize("objects", [None, TRUTH_ROWS], ids=["unknown", "known"])
@pytest.mark.parametrize("classes", [(), (1,), (0, 1, 2)])
@pytest.mark.parametrize(
    ("index", "maps"),
    [(0, view(1)), (1, empty((2, 3))), (2, view(3)), (2, empty((0, 0))), (3, empty((0, 4)))],
    ids=["wide", "constant", "dot", "no cells of a dot", "no rows"],
)
def test_a_row_has_the_image_its_proposal_map_and_its_classes(index, maps, classes, objects):
    result = map_result(index, [maps], [0.9, 0.8, 0.7], classes)
    objects = objects and objects.of_image(index)
    figure = draw_maps(pixels(SHAPES[index]), result, objects, class_names=NAMES)
    assert figure.dtype == np.uint8 and figure.ndim == 3 and figure.shape[2] == 3
    cell = (figure.shape[1] - 8) / (2 + len(classes))  # 320 pixels for the longer side, and a gap
    assert cell == int(cell) and min(SHAPES[index]) / max(SHAPES[index]) * 319 <= cell - 8 <= 320
    assert figure[:320].std() > 10


def test_only_the_best_three_of_many_classes_are_shown():
    cams = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    maps = dataclasses.replace(view(0), cams=cams)
    scores = np.array([0.1, 0.9, 0.3, 0.8, 0.2])
    found = dataclasses.replace(
        image_maps(maps, classes=range(5)), predicted=np.array([False, True, False, True, False])
    )
    result = ImageResult(0, (7, 9), image_scores=scores, maps=found)
    image, names = pixels((7, 9)), tuple("abcde")
    figure = draw_maps(image, result, None, class_names=names)
    best = dataclasses.replace(found, classes=np.array([1, 2, 3]))
    best = dataclasses.replace(best, views=(dataclasses.replace(maps, cams=cams[..., 1:4]),))
    alone = draw_maps(image, dataclasses.replace(result, maps=best), None, class_names=names)
    np.testing.assert_array_equal(figure, alone)
    assert (figure.shape[1] - 8) % 5 == 0


def test_a_cam_shows_its_class():
    found, image = image_maps(view(0)), pixels((7, 9))
    first, second = (draw_cam(image, found, c) for c in (0, 1))
    assert first.shape == second.shape and (first != second).any()


# Detections


def detections(boxes, scores, classes, **more):
    columns = np.array(boxes, np.float32).reshape(-1, 4), np.array(scores, np.float32)
    return ImageResult(1, (200, 200), *columns, np.array(classes, np.int32), **more)


BOXES = [[20, 20, 80, 80], [120, 20, 180, 80], [20, 120, 80, 180]]
OBJECTS = GroundTruth([1, 1], [0, 1], [BOXES[0], BOXES[2]], [False, True], 3, 3)
GRAY = np.full((200, 200, 3), 90, np.uint8)


def drawn(result, objects=OBJECTS, **options):
    return draw_detections(GRAY, result, objects, class_names=NAMES, **options)


def test_detections_are_judged():
    """A hit, a false one, and one on a difficult object."""
    for classes, colors in (
        ([0, 0, 1], {HIT, FALSE, NEUTRAL, TRUTH}),
        ([1, 1, 1], {FALSE, NEUTRAL, TRUTH}),
    ):
        figure = drawn(detections(BOXES, [0.9, 0.8, 0.7], classes))
        for color in (HIT, FALSE, NEUTRAL, TRUTH):
            assert (count(figure, color) > 20) == (color in colors)
    strict = drawn(detections([[20, 20, 80, 70]], [0.9], [0]), iou_thr=0.9)
    assert count(strict, FALSE) > 20 and not count(strict, HIT)


def test_only_the_best_boxes_above_the_threshold_are_drawn():
    result = detections(BOXES, [0.5, 0.9, 0.4], [0, 0, 1])
    for options, kept in (({}, [1, 0]), ({"score_thr": 0.95}, []), ({"max_boxes": 1}, [1])):
        part = detections([BOXES[i] for i in kept], result.scores[kept], result.classes[kept])
        np.testing.assert_array_equal(drawn(result, **options), drawn(part))
    assert count(drawn(result, score_thr=0.95), TRUTH) > 20  # what is missed is shown all the same


def test_without_objects_nothing_is_judged():
    figure = drawn(detections(BOXES, [0.9, 0.8, 0.7], [0, 0, 1]), None)
    assert not any(count(figure, color) for color in (FALSE, TRUTH))
    bare = drawn(detections([], [], []), None)
    assert (figure != bare).any()


def test_masks_and_label_maps_tint_their_pixels():
    semantic = np.zeros((200, 200), np.uint8)
    semantic[150:] = 3
    masks = tuple(Mask(30, 30, np.ones((20, 20), bool)) for _ in BOXES)
    result = detections(BOXES, [0.9, 0.3, 0.2], [0, 0, 1], masks=masks, semantic=semantic)
    figure = drawn(result, None)
    bare = drawn(dataclasses.replace(result, masks=None, semantic=None), None)
    side = figure.shape[0] // 200
    changed = (figure != bare).any(axis=-1)
    assert changed[160 * side, 190 * side] and changed[40 * side, 40 * side]
    assert not changed[100 * side, 100 * side]


# Whole passes


@pytest.fixture
def outcome(tmp_path):
    """Four images, the third of which cannot be read; boxes and maps of all."""
    records = []
    for i, name in enumerate(("a", "b", "c", "below/d")):
        path = tmp_path / f"{i}.png"
        path.write_bytes(b"broken")
        if i != 2:
            Image.fromarray(pixels(SHAPES[i], i)).save(path)
        records.append(ImageRecord(name, path, *SHAPES[i], (1, 0, 0)))
    images = ImageSet("made up", NAMES, tuple(records))
    boxes = [[0, 0, 4, 4]]
    data = AnnotatedImages(
        images, tuple(BoxAnnotations.from_lists(boxes, [0], [0]) for _ in records)
    )
    results = []
    for i in range(4):
        result = map_result(i, [view(i)], [0.9, 0.1, 0.8], (0, 2))
        found = detections(boxes, [0.9], [0])
        results.append(
            dataclasses.replace(
                result, boxes=found.boxes, scores=found.scores, classes=found.classes
            )
        )
    evaluators = {"boxes": BoxAp(3)}
    evaluations = score(results, data, evaluators)
    outputs = frozenset({"boxes", "maps"})
    return PassOutcome(
        "test", EvalOptions(), data, evaluators, evaluations, outputs, results, [], []
    )


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png"))


def test_a_pass_draws_curves_and_the_first_images_that_can_be_read(outcome, tmp_path):
    folder = tmp_path / "figures"
    pictures = draw_outcome(outcome, folder, 4)
    images = ["a.png", "b.png", "below_d.png"]
    assert files(folder) == sorted(
        ["detections.png", "maps.png", "precision_recall.png"]
        + [f"{kind}/{name}" for kind in ("detections", "maps") for name in images]
    )
    assert [picture.path.name for picture in pictures] == [
        "precision_recall.png",
        "detections.png",
        "maps.png",
    ]
    assert "green" in pictures[1].caption
    sheet = read_image(pictures[2].path)
    rows = [read_image(folder / "maps" / name) for name in images]
    assert sheet.shape[0] > sum(row.shape[0] for row in rows)
    few = tmp_path / "few"
    draw_outcome(outcome, few, 1)
    assert [name for name in files(few) if "/" in name] == ["detections/a.png", "maps/a.png"]


def test_a_pass_without_annotations_or_results(outcome, tmp_path):
    bare = dataclasses.replace(
        outcome, data=dataclasses.replace(outcome.data, objects=None), evaluations={}
    )
    pictures = draw_outcome(bare, tmp_path / "bare", 2)
    assert [picture.path.name for picture in pictures] == ["detections.png", "maps.png"]
    assert "green" not in pictures[0].caption
    for what in (
        {"results": []},
        {"results": [ImageResult(0, SHAPES[0], image_scores=np.ones(3))]},
    ):
        nothing = dataclasses.replace(bare, **what)
        assert draw_outcome(nothing, tmp_path / "none", 4) == []
    assert draw_outcome(bare, tmp_path / "none", 0) == []
    assert not (tmp_path / "none").exists()


def test_curves_leave_out_classes_without_objects(outcome):
    metrics = outcome.evaluations["boxes"].detail
    assert metrics.num_objects.tolist() == [4, 0, 0]
    chart = draw_precision_recall(metrics, NAMES)
    assert chart.dtype == np.uint8 and chart.shape[2] == 3 and chart.std() > 5
    renamed = draw_precision_recall(metrics, ("cat", "other", "names"))
    np.testing.assert_array_equal(chart, renamed)
    assert (draw_precision_recall(metrics, NAMES, title="Run") != chart).any()
