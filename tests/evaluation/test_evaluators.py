"""Evaluators on small made-up results, against numbers counted by hand; images that could not be read."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsod_jax.data.records import BoxAnnotations, ImageInstances
from wsod_jax.errors import DataError
from wsod_jax.evaluation.evaluators import (
    Annotation,
    BoxAp,
    CocoAp,
    CorLoc,
    MaskAp,
    PseudoBoxes,
    evaluation_labels,
)
from wsod_jax.evaluation.image_evaluators import Classification, Energy, Ilsvrc, MeanIou, Pointing
from wsod_jax.evaluation.maps import ImageMaps, MapReading, ViewMaps
from wsod_jax.evaluation.metrics.classification import classification_ap
from wsod_jax.types import ImageResult, Mask

CLASSES, SIZE = 4, (20, 20)
BOX, OTHER = [0, 0, 10, 10], [10, 10, 20, 20]
NAN = np.nan

# (box, class, difficult) of each image; class 2 has no object
OBJECTS = [
    [(BOX, 0, False), (OTHER, 0, True)],
    [(BOX, 0, False), (BOX, 1, False), (BOX, 3, False)],
    [(BOX, 0, False)],
]
# (score, box, class), the best first; class 3 has no detection, the last image could not be read
DETECTIONS = [
    [(0.9, BOX, 0), (0.8, OTHER, 0), (0.7, [0, 0, 5, 5], 1)],
    [(0.6, [0, 0, 10, 6], 0), (0.5, [0, 0, 10, 8], 1), (0.4, BOX, 2)],
    None,
]


def box_mask(box):
    x1, y1, x2, y2 = box
    return Mask(y1, x1, np.ones((y2 - y1, x2 - x1), bool))


def annotation_of(objects, labels=None, label_map=None, num_classes=CLASSES):
    """Annotate boxes, and masks that fill them."""
    boxes, classes, difficult = ([one[i] for one in objects] for i in range(3))
    boxes_of = BoxAnnotations.from_lists(boxes, classes, difficult)
    masks = tuple(map(box_mask, boxes))
    instances = ImageInstances(
        masks,
        boxes_of.classes,
        boxes_of.difficult,
        np.zeros(len(boxes), bool),
        np.array([mask.pixels.sum() for mask in masks], np.float32),
    )
    labels = np.zeros(num_classes, np.int32) if labels is None else np.asarray(labels)
    labels = evaluation_labels(labels, boxes_of)
    return Annotation(labels, boxes_of, lambda: instances, label_map)


def result_of(index, detections, **more):
    """Detect boxes, and masks that fill them; `None` is an image that could not be read."""
    if detections is None:
        return ImageResult(index, SIZE)
    scores, boxes, classes = ([one[i] for one in detections] for i in range(3))
    return ImageResult(
        index,
        SIZE,
        boxes=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.array(scores, np.float32),
        classes=np.array(classes, np.int32),
        masks=tuple(map(box_mask, boxes)),
        **more,
    )


def computed(evaluator, results=None, annotations=None):
    """Feed an evaluator and compute."""
    if results is None:
        results = [result_of(i, found) for i, found in enumerate(DETECTIONS)]
        annotations = [annotation_of(objects) for objects in OBJECTS]
    for result, annotation in zip(results, annotations, strict=True):
        evaluator.update(result, annotation)
    return evaluator.compute()


def expect_shares(found, expected):
    """Compare the columns of shares: name -> value of each class."""
    assert list(found.shares) == list(expected)
    for name, values in expected.items():
        np.testing.assert_allclose(found.shares[name][1], values, rtol=1e-6, err_msg=name)


# Boxes and masks


def test_box_ap():
    found = computed(BoxAp(CLASSES))
    expect_shares(found, {"AP50": [7 / 11, 1 / 2, NAN, 0], "AP75": [4 / 11, 1 / 2, NAN, 0]})
    assert found.summary == pytest.approx(
        {"mAP50": (7 / 11 + 1 / 2) / 3, "mAP75": (4 / 11 + 1 / 2) / 3}
    )
    counts = {name: values.tolist() for name, values in found.counts.items()}
    assert counts == {
        "objects": [3, 1, 0, 1],
        "difficult": [1, 0, 0, 0],
        "detections": [3, 2, 1, 0],
        "hits": [2, 1, 0, 0],
    }
    [(reason, classes)] = found.left_out.items()
    assert "mAP50" in reason and classes.tolist() == [False, False, True, False]
    assert found.iou_sweep == {} and "3 images, 5 objects" in found.notes[0]


def test_box_ap_over_thresholds_and_by_area():
    found = computed(BoxAp(CLASSES, iou_thrs=(0.5, 0.6, 0.9), ap_mode="area"))
    first, second, last = [2 / 3, 1 / 2, NAN, 0], [1 / 3, 1 / 2, NAN, 0], [1 / 3, 0, NAN, 0]
    mean = np.mean([first, second, last], axis=0)  # 0.6 is no more than 0.6
    expect_shares(found, {"AP50": first, "AP75": second, "AP50:90": mean})
    sweep = {"0.50": 7 / 18, "0.60": 5 / 18, "0.90": 1 / 9, "0.75": 5 / 18}
    assert found.iou_sweep == pytest.approx(sweep)
    only = computed(BoxAp(CLASSES, iou_thrs=(0.75,)))
    assert list(only.summary) == ["mAP75"]


def test_mask_ap_is_that_of_the_boxes_they_fill():
    found = computed(MaskAp(CLASSES))
    first, second = [2 / 3, 1 / 2, NAN, 0], [1 / 3, 1 / 2, NAN, 0]
    expect_shares(
        found,
        {
            "mask AP25": first,
            "mask AP50": first,
            "mask AP70": second,
            "mask AP75": second,
            "ABO": [1.6 / 3, 0.8, NAN, 0],
        },
    )
    assert found.counts["masks"].tolist() == [3, 2, 1, 0]
    assert found.counts["instances"].tolist() == [3, 1, 0, 1]
    assert 0 < found.overall["mask AP small"] < 0.5
    assert np.isnan([found.overall["mask AP medium"], found.overall["mask AP large"]]).all()


@pytest.mark.parametrize(("region", "prefix"), [("boxes", "COCO"), ("masks", "COCO mask")])
def test_coco_numbers_of_the_truth_itself_are_perfect(region, prefix):
    annotations = [annotation_of(objects) for objects in OBJECTS]
    results = [
        result_of(i, [(0.5, box, c) for box, c, _ in objects]) for i, objects in enumerate(OBJECTS)
    ]
    summary = computed(CocoAp(CLASSES, region), results, annotations).summary
    assert len(summary) == 12 and summary[f"{prefix} AP"] == pytest.approx(1)
    assert summary[f"{prefix} AP_small"] == pytest.approx(1) and np.isnan(
        summary[f"{prefix} AP_large"]
    )
    missing = computed(CocoAp(CLASSES, region)).summary
    assert missing[f"{prefix} AP50"] == pytest.approx((67 / 101 + 1 / 2 + 0) / 3)


def test_images_without_a_mask_annotation_count_for_nothing():
    known = annotation_of([(BOX, 0, False)])
    unknown = dataclasses.replace(known, instances=None)
    results = [result_of(0, [(0.9, BOX, 0)]), result_of(1, None)]
    found = computed(MaskAp(1), results, [known, unknown])
    assert found.shares["mask AP50"][1].tolist() == [1.0]


def test_objects_without_a_mask_are_told():
    known = annotation_of([(BOX, 0, False)])
    instances = dataclasses.replace(known.instances(), num_without=2)
    without = dataclasses.replace(known, instances=lambda: instances)
    found = computed(MaskAp(1), [result_of(0, [(0.9, BOX, 0)])], [without])
    assert found.shares["mask AP50"][1].tolist() == [1.0]
    assert any("2 annotated objects" in note for note in found.notes)


def test_corloc():
    found = computed(CorLoc(CLASSES))
    expect_shares(found, {"CorLoc": [2 / 3, 1, NAN, 0]})
    assert found.summary["CorLoc"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found.counts["images"].tolist() == [3, 1, 0, 1]
    assert found.numbers["top box size ratio"] == pytest.approx(0.8**0.5)
    [(_, without)] = found.left_out.items()
    assert without.tolist() == [False, False, True, False]


def test_corloc_of_images_with_difficult_objects_alone_is_an_option():
    annotations = [annotation_of([(BOX, 0, True)]), annotation_of([(BOX, 0, False)])]
    results = [result_of(0, [(0.9, BOX, 0), (0.8, OTHER, 0)]), result_of(1, [(0.9, OTHER, 0)])]
    found = computed(CorLoc(CLASSES), results, annotations)
    assert found.summary["CorLoc"] == 0.5
    assert np.isnan(found.numbers["top box size ratio"])  # of labeled classes alone
    without = computed(CorLoc(CLASSES, include_difficult=False), results, annotations)
    assert without.summary["CorLoc"] == 0.0 and without.counts["images"].tolist() == [1, 0, 0, 0]


def test_pseudo_boxes():
    found = computed(PseudoBoxes(CLASSES))
    expect_shares(
        found,
        {
            "precision": [1, 1 / 2, 0, NAN],
            "recall": [3 / 4, 1, NAN, 0],
            "ABO": [2.6 / 4, 0.8, NAN, 0],
            "size ratio": [1, 0.8**0.5, NAN, NAN],
        },
    )
    assert found.numbers == {"boxes per image": 2.0}
    assert found.counts["boxes"].tolist() == [3, 2, 1, 0]
    assert found.counts["objects"].tolist() == [4, 1, 0, 1]
    assert [classes.tolist() for classes in found.left_out.values()] == [
        [False, False, False, True],
        [False, False, True, False],
    ]


def test_nothing_was_read_at_all():
    annotations = [annotation_of(objects) for objects in OBJECTS]
    results = [result_of(i, None) for i in range(3)]
    for evaluator, name in (
        (BoxAp(CLASSES), "mAP50"),
        (MaskAp(CLASSES), "mask AP50"),
        (CocoAp(CLASSES), "COCO AP"),
        (CorLoc(CLASSES), "CorLoc"),
        (PseudoBoxes(CLASSES), "recall"),
        (Pointing(CLASSES), "pointing"),
    ):
        assert computed(evaluator, results, annotations).summary[name] == 0.0
    assert computed(Classification(), results, annotations).summary == {}
    assert np.isnan(computed(Energy(), results, annotations).summary["energy"])


# Label maps


def test_mean_iou():
    truth = np.array([[0, 1], [1, 255]], np.uint8)
    label_map = lambda: truth  # noqa: E731
    annotated, unknown = annotation_of([], label_map=label_map), annotation_of([])
    results = [
        ImageResult(0, (2, 2), semantic=np.array([[0, 1], [2, 2]], np.uint8)),
        ImageResult(1, (2, 2)),  # not read: all background
        ImageResult(2, (9, 9)),
    ]
    found = computed(MeanIou(3), results, [annotated, annotated, unknown])
    # background: 2 hits, 2 more predicted; class 1: 1 hit of 4; class 2: predicted once
    expect_shares(found, {"IoU": [1 / 4, 0, NAN]})
    assert found.summary == pytest.approx(
        {"IoU of classes": 1 / 8, "mIoU": (2 / 4 + 1 / 4 + 0) / 3, "IoU of background": 1 / 2}
    )


# Labels


def test_labels_that_image_level_metrics_count():
    labels = np.array([1, 1, 0, -1, -1, 0])
    rows = [(BOX, 0, True), (BOX, 0, False), (BOX, 1, True), (BOX, 3, False), (BOX, 5, True)]
    objects = BoxAnnotations.from_lists(*([row[i] for row in rows] for i in range(3)))
    assert evaluation_labels(labels, objects).tolist() == [1, -1, 0, 1, -1, -1]
    assert evaluation_labels(labels, None).tolist() == labels.tolist()
    assert evaluation_labels(labels, BoxAnnotations.from_lists([], [], [])).tolist() == [
        0,
        0,
        0,
        -1,
        -1,
        0,
    ]
    assert labels.tolist() == [1, 1, 0, -1, -1, 0]  # as they were


def test_a_class_that_is_only_difficult_in_an_image_is_no_false_positive():
    """Of three images the best-scored one has a difficult cat alone."""
    scores = np.array([[0.9], [0.5], [0.1]], np.float32)
    training = np.array([[0], [1], [0]])
    assert classification_ap(scores, training).tolist() == [0.5]
    rows = [[(BOX, 0, True)], [(BOX, 0, False)], []]
    annotations = [
        annotation_of(objects, labels, num_classes=1)
        for objects, labels in zip(rows, training, strict=True)
    ]
    results = [ImageResult(i, SIZE, image_scores=score) for i, score in enumerate(scores)]
    found = computed(Classification(), results, annotations)
    assert found.summary == {"classification mAP": 1.0}


def test_image_level_ap():
    scores = np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [np.nan, 0.4]])
    labels = np.array([[1, 0], [0, 0], [1, 0], [-1, 0]])
    np.testing.assert_allclose(
        classification_ap(scores, labels, ap_mode="area"), [0.5 + 0.5 * 2 / 3, np.nan]
    )
    with pytest.raises(DataError, match="shape"):
        classification_ap(scores, labels[:2])
    with pytest.raises(DataError, match="finite"):
        classification_ap(scores, np.abs(labels))


@given(st.integers(0, 10**6))
def test_classification_by_rank_equals_the_loop(seed):
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 6, (9, 3)) / 5, rng.integers(-1, 2, (9, 3))
    read = rng.random(9) < 0.8
    results = [ImageResult(i, SIZE, image_scores=scores[i] if read[i] else None) for i in range(9)]
    found = computed(Classification("ranking"), results, [Annotation(row) for row in labels])
    expected = []
    for c in range(3):
        images = [i for i in range(9) if read[i] and labels[i, c] >= 0]
        images.sort(key=lambda i: (-scores[i, c], i))
        right = [labels[i, c] == 1 for i in images]
        precisions = [sum(right[: n + 1]) / (n + 1) for n in range(len(right)) if right[n]]
        expected.append(np.mean(precisions) if precisions else NAN)
    if found.shares:
        expect_shares(found, {"classification AP": expected})
        assert "`ranking`" in found.notes[0]
    else:
        assert not read.any() or (labels[read] < 0).all()


# Maps


def maps_of(regions, objectness=None, read=None, num_classes=CLASSES):
    """Make maps of one cell per pixel: the activation to class c is 1 in its region, which its tightest box is."""
    cams = np.zeros((*SIZE, num_classes), np.float32)
    for c, (x1, y1, x2, y2) in regions.items():
        cams[y1:y2, x1:x2, c] = 1.0
    objectness = np.ones(SIZE, np.float32) if objectness is None else objectness
    classes = np.arange(num_classes)
    view = ViewMaps(cams, objectness, SIZE)
    return ImageMaps((view,), classes, np.isin(classes, list(regions)), SIZE, MapReading())


def map_result(index, regions, image_scores, **options):
    maps = maps_of(regions, **options)
    return ImageResult(index, SIZE, maps=maps, image_scores=np.array(image_scores, np.float32))


def test_pointing():
    small, far = [0, 0, 4, 4], [12, 12, 16, 16]
    annotations = [
        annotation_of([(small, 0, False), (far, 1, False)]),
        annotation_of([(BOX, 0, False)]),
    ]
    regions = {0: [1, 1, 3, 3], 1: [0, 0, 2, 2]}  # the second points 11.5 pixels beside its object
    results = [map_result(0, regions, [0.9, 0.2, 0.1, 0]), ImageResult(1, SIZE)]
    found = computed(Pointing(CLASSES, 5.0, 12.0), results, annotations)
    expect_shares(
        found,
        {
            "pointing": [1 / 2, 0, NAN, NAN],
            "pointing difficult": [1, 0, NAN, NAN],
            "pointing AP": [6 / 11, 1, NAN, NAN],
        },
    )
    assert found.summary == pytest.approx(
        {"pointing": 1 / 4, "pointing difficult": 1 / 2, "pointing AP": 17 / 22}
    )


def test_energy_leaves_out_images_without_objects_or_not_read():
    objectness = np.zeros(SIZE, np.float32)
    objectness[:10, :10], objectness[10:, 10:] = 1.0, 3.0
    annotations = [annotation_of([(BOX, 0, False)]), annotation_of([]), annotation_of(OBJECTS[0])]
    annotations.append(annotations[0])
    results = [map_result(i, {}, [0] * 4, objectness=objectness) for i in range(3)]
    results.append(ImageResult(3, SIZE))
    evaluator = Energy()
    found = computed(evaluator, results, annotations)
    np.testing.assert_allclose(evaluator.energies, [1 / 4, NAN, 1, NAN])
    assert found.summary == {"energy": 5 / 8} and "2 images" in found.notes[0]


def test_corloc_of_maps_looks_at_the_tightest_box_and_at_any_component():
    rows = [[(BOX, 0, False), (BOX, 1, False)], [(BOX, 0, False)], [(BOX, 0, False)]]
    annotations = [annotation_of(objects) for objects in rows]
    apart = maps_of({0: BOX, 1: OTHER})
    apart.views[0].cams[19, 19, 0] = 1.0  # a second component spoils the tightest box of class 0
    results = [
        dataclasses.replace(map_result(0, {}, [0] * 4), maps=apart),
        map_result(1, {0: [0, 0, 10, 6]}, [0] * 4),
        ImageResult(2, SIZE),
    ]
    found = computed(CorLoc(CLASSES), results, annotations)
    expect_shares(found, {"CorLoc": [1 / 3, 0, NAN, NAN], "CorLoc any": [2 / 3, 0, NAN, NAN]})
    assert "top box size ratio" not in found.numbers


def test_ilsvrc():
    """One image is right, one has its class second, one could not be read, one has a wrong box."""
    num_classes = 6
    labels = [2, 1, 0, 3]
    annotations = [annotation_of([(BOX, c, False)], num_classes=num_classes) for c in labels]
    results = [
        map_result(0, {2: BOX}, [0, 0, 9, 0, 0, 1], num_classes=num_classes),
        map_result(1, {1: BOX, 5: BOX}, [0, 5, 0, 0, 0, 9], num_classes=num_classes),
        ImageResult(2, SIZE),
        map_result(3, {3: OTHER}, [0, 0, 0, 9, 0, 0], num_classes=num_classes),
    ]
    found = computed(Ilsvrc(num_classes), results, annotations)
    assert found.summary == {
        "localization error": 1 / 2,
        "top-1 error": 1 / 2,
        "top-1 localization error": 3 / 4,
        "top-5 error": 1 / 4,
        "top-5 localization error": 1 / 2,
    }
    assert found.notes == []
    found = computed(Ilsvrc(num_classes, blacklist=[2]), results, annotations)
    assert found.summary["localization error"] == pytest.approx(1 / 3)
    assert found.summary["top-5 error"] == 0 and "leaves 1 images" in found.notes[0]


def test_ilsvrc_with_fewer_classes_than_guesses():
    annotations = [annotation_of([(BOX, 1, False)], num_classes=2)]
    result = map_result(0, {0: BOX, 1: BOX}, [0.9, 0.1], num_classes=2)
    summary = computed(Ilsvrc(2), [result], annotations).summary
    assert summary["top-1 error"] == 1 and summary["top-2 localization error"] == 0
