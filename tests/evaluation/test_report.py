"""Reports hold the numbers, say what was left out, and can be moved with their pictures."""

import json
import math

import numpy as np
import pytest

from tests.evaluation.test_average_precision import BOX, detections_of, truth_of
from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.average_precision import IOU_SWEEP, evaluate_detections
from wsod_jax.evaluation.metrics.classification import classification_ap
from wsod_jax.evaluation.metrics.coco_metrics import coco_ap
from wsod_jax.evaluation.metrics.corloc import box_quality, corloc, top_boxes
from wsod_jax.evaluation.report import Picture, summarise_seeds, write_report

NAMES = ("cat", "dog", "cow")


@pytest.fixture
def tables():
    found = detections_of(
        [(0, 0, 0.9, BOX), (0, 1, 0.8, [0, 0, 10, 8]), (1, 1, 0.7, [0, 0, 4, 4])],
        num_images=2,
        num_classes=3,
    )
    truth = truth_of(
        [(0, 0, BOX, False), (0, 1, BOX, False), (1, 1, BOX, False), (1, 2, BOX, True)],
        num_images=2,
        num_classes=3,
    )
    return found, truth


def test_report_holds_numbers_settings_and_relative_pictures(tmp_path, tables):
    found, truth = tables
    folder = tmp_path / "reports" / "step 5"
    picture = tmp_path / "reports" / "pictures" / "hits 1.png"
    path = write_report(
        folder,
        title="OIM on two images",
        class_names=NAMES,
        settings={"seed": 0, "test": {"nms_thr": 0.3, "merge": "a|b"}, "views": (480, 576)},
        detection=evaluate_detections(found, truth, iou_thrs=IOU_SWEEP),
        corloc=corloc(*top_boxes(found), truth),
        classification=np.array([1.0, 0.5, np.nan]),
        scalars={"size_ratio": 0.61234, "steps": 5},
        pictures=[Picture(picture, "The hits")],
        notes=["1 image was skipped."],
    )
    content = json.loads((folder / "report.json").read_text())
    assert content["summary"]["mAP50"] == pytest.approx((1 + 6 / 11) / 2)
    assert content["summary"]["CorLoc"] == pytest.approx((1 + 0.5 + 0) / 3)
    assert content["summary"]["image mAP"] == 0.75
    assert content["per_class"][1]["AP50"] == pytest.approx(6 / 11)
    assert content["per_class"][2]["AP50"] is None
    assert content["iou_sweep"]["0.75"] == pytest.approx((1 + 6 / 11) / 2)
    assert content["iou_sweep"]["0.80"] == pytest.approx(0.5)
    assert content["settings"]["views"] == [480, 576]
    assert content["pictures"][0]["path"] == "../pictures/hits 1.png"
    text = path.read_text()
    for expected in (
        "# OIM on two images",
        "| mAP50 | 77.3 % |",
        "| `test.nms_thr` | `0.3` |",
        "a\\|b",
        "![The hits](../pictures/hits%201.png)",
        "No object that counts, so not in mAP: cow.",
        "1 image was skipped.",
        "| size_ratio | 0.6123 |",
        "11point",
    ):
        assert expected in text


def test_report_without_metrics_still_writes(tmp_path):
    path = write_report(tmp_path, title="Nothing", class_names=("a",), settings={})
    assert "# Nothing" in path.read_text()
    assert json.loads((tmp_path / "report.json").read_text())["per_class"] == [{"class": "a"}]


def test_seeds_are_summarised_with_the_sample_deviation():
    runs = [{"mAP50": 0.50, "only": 1}, {"mAP50": 0.52}, {"mAP50": 0.54}]
    summary = summarise_seeds(runs)
    assert list(summary) == ["mAP50"]
    assert summary["mAP50"].std == pytest.approx(0.02)
    assert summary["mAP50"].as_percent() == "52.0 ± 2.0"
    single = summarise_seeds(runs[:1])["mAP50"]
    assert math.isnan(single.std) and single.as_percent() == "50.0"
    with pytest.raises(DataError, match="no runs"):
        summarise_seeds([])
    with pytest.raises(DataError, match="numbers"):
        summarise_seeds([{"a": "x"}])


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


def test_coco_metrics_of_perfect_and_of_no_detections(tables):
    _, truth = tables
    perfect = detections_of(
        [
            (i, c, 0.5, box)
            for i, c, box in zip(truth.image_index, truth.classes, truth.boxes, strict=True)
        ],
        num_images=2,
        num_classes=3,
    )
    metrics = coco_ap(perfect, truth)
    assert metrics.summary["AP"] == pytest.approx(1.0)
    np.testing.assert_allclose(metrics.ap, [1.0, 1.0, np.nan])  # the third has a difficult one only
    nothing = coco_ap(perfect.take(np.zeros(0, int)), truth)
    assert nothing.summary["AP"] == 0.0 and np.isnan(nothing.summary["AP_large"])


def test_coco_ap50_differs_from_area_ap_by_interpolation_only(tables):
    found, truth = tables
    coco = coco_ap(found, truth).summary["AP50"]
    area = evaluate_detections(found, truth, ap_mode="area").mean_ap[0]
    assert coco == pytest.approx(area, abs=0.01)


def test_box_quality_measures_part_domination(tables):
    found, truth = tables
    quality = box_quality(found, truth)
    assert quality.precision == pytest.approx(2 / 3)
    assert quality.recall == pytest.approx(2 / 4)
    assert quality.mean_iou == pytest.approx((1 + 0.8 + 0.16) / 3)
    assert quality.size_ratio == pytest.approx(np.sqrt(0.8))
    assert quality.boxes_per_image == 1.5
    nothing = box_quality(found.take(np.zeros(0, int)), truth)
    assert np.isnan(nothing.precision) and nothing.recall == 0.0
