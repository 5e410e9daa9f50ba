"""Reports hold the numbers, say what was left out, and can be moved with their pictures."""

import json
import math

import numpy as np
import pytest

from wsod_jax.evaluation.report import (
    Evaluation,
    Figure,
    Report,
    Table,
    write_report,
)

NAMES = ("cat", "dog", "cow")


def evaluations():
    boxes = Evaluation(counts={"objects": np.array([3, 4, 0])})
    boxes.add_share("AP50", [0.25, 0.5, np.nan], mean="mAP50")
    boxes.without("an object that counts", boxes.counts["objects"] == 0, "mAP50")
    boxes.without("a box", np.zeros(3, bool), "precision")
    boxes.iou_sweep = {"0.50": 0.375, "0.75": math.nan}
    boxes.notes.append("AP is `11point`.")
    other = Evaluation(overall={"energy": 0.625, "mIoU": math.nan})
    other.numbers = {"steps": 5, "ratio": 0.61234}
    other.add_share("CorLoc", np.array([1.0, 0.5, 0.0]))
    other.tables.append(Table("By size", ["size", "AP"], [["small", 0.125], ["large", None]]))
    return [boxes, other]


def written(folder, **options):
    given = dict(title="OIM on two images", class_names=NAMES, settings={})
    path = write_report(folder, Report(**given | options))
    return json.loads((folder / "report.json").read_text()), path.read_text()


def test_an_evaluation_averages_over_the_classes_that_have_a_share():
    boxes, other = evaluations()
    assert boxes.summary == {"mAP50": 0.375}
    assert other.summary == pytest.approx(
        {"CorLoc": 0.5, "energy": 0.625, "mIoU": math.nan, "steps": 5, "ratio": 0.61234},
        nan_ok=True,
    )
    none = Evaluation()
    none.add_share("AP50", [np.nan, np.nan])
    assert math.isnan(none.summary["AP50"]) and Evaluation().summary == {}


def test_json_holds_every_number(tmp_path):
    settings = {"seed": np.int64(0), "test": {"nms_thr": np.float32(0.5)}, "views": (480, 576)}
    settings |= {"path": tmp_path, "flag": np.bool_(True), "limit": math.inf}
    content, _ = written(
        tmp_path,
        evaluations=evaluations(),
        settings=settings,
        numbers={"boxes per image": 2.5},
        left_out=["1 image is missing"],
        notes=["First note."],
        tables=[Table("Of all", ["class", "share"], [["cat", 1.0]])],
    )
    assert content["summary"] == {
        "mAP50": 0.375,
        "CorLoc": 0.5,
        "energy": 0.625,
        "mIoU": None,
        "steps": 5,
        "ratio": 0.61234,
        "boxes per image": 2.5,
    }
    assert content["per_class"] == [
        {"class": "cat", "AP50": 0.25, "objects": 3, "CorLoc": 1.0},
        {"class": "dog", "AP50": 0.5, "objects": 4, "CorLoc": 0.5},
        {"class": "cow", "AP50": None, "objects": 0, "CorLoc": 0.0},
    ]
    assert content["iou_sweep"] == {"0.50": 0.375, "0.75": None}
    assert content["settings"] == {
        "seed": 0,
        "test": {"nms_thr": 0.5},
        "views": [480, 576],
        "path": str(tmp_path),
        "flag": True,
        "limit": None,
    }
    assert [table["title"] for table in content["tables"]] == ["By size", "Of all"]
    assert content["tables"][0]["rows"] == [["small", 0.125], ["large", None]]
    assert content["left_out"] == ["1 image is missing"] and content["figures"] == []
    first, own, without = content["notes"]  # nothing is said of reasons that concern no class
    assert (first, own) == ("First note.", "AP is `11point`.")
    assert without == "Without an object that counts, so not in mAP50: cow."


def test_markdown_shows_shares_in_percent(tmp_path):
    content, text = written(
        tmp_path,
        evaluations=evaluations(),
        settings={"seed": 0, "test": {"nms_thr": 0.3, "merge": "a|b"}, "views": (480, 576)},
        left_out=["1 image is missing"],
        numbers={"seconds": 1234.5678},
    )
    for line in (
        "# OIM on two images",
        "**1 image is missing**",
        "| mAP50 | 37.5 % |",
        "| CorLoc | 50.0 % |",
        "| steps | 5 |",
        "| ratio | 0.6123 |",
        "| energy | 62.5 % |",
        "| mIoU | – |",
        "| seconds | 1235 |",
        "| class | AP50 | objects | CorLoc |",
        "| dog | 50.0 | 4 | 50.0 |",
        "| cow | – | 0 | 0.0 |",
        "| **mean, sum** | 37.5 | 7 | 50.0 |",
        "| IoU > | 0.50 | 0.75 |",
        "| mAP | 37.5 | – |",
        "| small | 12.5 |",
        "| large | – |",
        "- Without an object that counts, so not in mAP50: cow.",
        "| `seed` | `0` |",
        "| `test.nms_thr` | `0.3` |",
        "| `test.merge` | `a\\|b` |",
        "| `views` | `[480, 576]` |",
    ):
        assert line in text.splitlines(), line
    assert text.index("1 image is missing") < text.index("## Summary")


def test_figures_are_linked_relative_to_the_report(tmp_path):
    folder = tmp_path / "reports" / "step 5"
    figure = Figure(tmp_path / "reports" / "images" / "hits 1.png", "The hits")
    path = write_report(folder, Report("Title", NAMES, {}), [figure])
    assert path == folder / "report.md"
    assert "![The hits](../images/hits%201.png)" in path.read_text()
    [listed] = json.loads((folder / "report.json").read_text())["figures"]
    assert listed == {"path": "../images/hits 1.png", "caption": "The hits"}


def test_a_report_without_numbers_still_writes(tmp_path):
    content, text = written(tmp_path, title="Nothing")
    assert "# Nothing" in text and "Per class" not in text
    assert content["summary"] == content["iou_sweep"] == {} and content["per_class"] == []
