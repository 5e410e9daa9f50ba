"""`wsod-jax evaluate` from end to end: interrupted, on several devices, further passes, files in and out."""

import dataclasses
import errno
import functools
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.commands import refused, train
from tests.data.readers.voc_tree import pixels, write_voc
from tests.test_end_to_end import FAST, read_report
from wsod_jax.commands import evaluate, measuring
from wsod_jax.data.proposals.selective_search import SearchOptions, run_selective_search
from wsod_jax.data.readers.coco import Coco
from wsod_jax.data.readers.voc import Voc
from wsod_jax.evaluation import formats
from wsod_jax.evaluation.result_log import ResultLog
from wsod_jax.evaluation.results_reading import read_results
from wsod_jax.runs import predictor
from wsod_jax.train.sharding import make_mesh
from wsod_jax.viz.canvas import save_image

NO_FIGURES = [*FAST[:2], "--figures", "0"]


def measure(run, out: Path, *arguments, status: int = 0) -> Path:
    """Evaluate the last checkpoint; return the folder of its report."""
    given = ["--workdir", run.workdir, "--out", out, *NO_FIGURES, *arguments]
    assert evaluate.main([str(argument) for argument in given]) == status
    return out / "4"


def entries(folder: Path) -> list[dict]:
    return json.loads((folder / "predictions.json").read_text())


@pytest.fixture(scope="module")
def evaluated(trained_run, tmp_path_factory):
    """The report of an evaluation that nothing interrupts, on four devices."""
    return measure(trained_run, tmp_path_factory.mktemp("evaluated"), "--coco", "--coco_set")


# -- stopped in the middle


def stop(patch, number: int, error: BaseException | None) -> list[int]:
    """Raise an error when so many results are kept; return the list that gets the images of those."""
    kept, add = [], ResultLog.add

    def adding(log, result, counts):
        if error is not None and len(kept) == number:
            raise error
        kept.append(result.image_index)
        add(log, result, counts)

    patch.setattr(ResultLog, "add", adding)
    return kept


def comparable(folder: Path) -> dict:
    """Return all of a report but its times."""
    report = read_report(folder)
    del report["summary"]["seconds_per_image"]
    return report


def test_what_is_interrupted_goes_on_and_ends_the_same(trained_run, tmp_path, monkeypatch, capsys):
    """Ctrl-C in the first pass, a record cut off, a full disk in the second pass; every image is predicted once."""
    monkeypatch.setattr(predictor, "make_mesh", functools.partial(make_mesh, 1))
    one_by_one = ["--set", "micro_batch=1"]
    straight = measure(trained_run, tmp_path / "straight", *one_by_one)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    out, kept = tmp_path / "stopped", []
    for number, error, status in ((3, KeyboardInterrupt(), 130), (6, full, 1), (0, None, 0)):
        with monkeypatch.context() as patch:
            kept += [stop(patch, number, error)]
            measure(trained_run, out, *one_by_one, status=status)
        if status == 130:
            assert "same command" in capsys.readouterr().err
            assert not (out / "4" / "report.json").exists()
            (log,) = (out / "4").glob(".test*")
            log.write_bytes(log.read_bytes()[:-7])  # the third image, as a kill would leave it
    assert [len(images) for images in kept] == [3, 6, 4]  # of 4 and 8 images
    first, second, third = kept
    assert sorted(first[:2] + second[:2]) == [0, 1, 2, 3]
    assert sorted(second[2:] + third) == list(range(8))
    assert comparable(out / "4") == comparable(straight)
    assert entries(out / "4") == entries(straight)
    assert not list((out / "4").glob(".*"))


def test_results_of_other_settings_are_not_gone_on_with(trained_run, tmp_path, monkeypatch):
    for number, (changes, status) in enumerate(
        [
            ([], 1),
            (["--set", "nms_thr=0.1"], 1),
            (["--set", "nms_thr=0.1", "--set", "ap=11point"], 0),
        ]
    ):
        with monkeypatch.context() as patch:
            kept = stop(patch, 4, OSError("stopped") if status else None)
            measure(trained_run, tmp_path, "--passes", "corloc", *changes, status=status)
        expected = [4, 4, 8][number]  # the metric is no part of what is predicted
        assert len(kept) == expected


def test_a_full_disk_leaves_no_half_file(evaluated, trained_run, tmp_path, monkeypatch, capsys):
    whole = entries(evaluated)
    detections = formats._detections

    def until_full(result, category_ids):
        for number, found in enumerate(detections(result, category_ids)):
            if result.image_index == 2 and number == 3:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            yield found

    with monkeypatch.context() as patch:
        patch.setattr(formats, "_detections", until_full)
        given = ["--workdir", trained_run.workdir, "--out", tmp_path, *NO_FIGURES]
        refused(evaluate.main, given, "No space left", capsys)
    (log,) = (tmp_path / "4").iterdir()
    assert log.name.startswith(".test_0_") and log.suffix == ".results"
    with monkeypatch.context() as patch:
        kept = stop(patch, 0, None)
        folder = measure(trained_run, tmp_path, "--passes")
    assert kept == [] and entries(folder) == whole
    patched = tmp_path / "4" / "predictions.json"
    before = patched.read_bytes()
    monkeypatch.setattr(formats, "_detections", until_full)
    refused(evaluate.main, given, "No space left", capsys)
    assert patched.read_bytes() == before


# -- devices and passes


def test_one_device_measures_what_four_do(evaluated, trained_run, tmp_path, monkeypatch):
    monkeypatch.setattr(predictor, "make_mesh", functools.partial(make_mesh, 1))
    one = measure(trained_run, tmp_path, "--coco")
    found, expected = read_report(one)["summary"], read_report(evaluated)["summary"]
    for summary in (found, expected):
        del summary["seconds_per_image"]
    assert found == pytest.approx(expected, abs=1e-5)
    assert {"mAP50", "CorLoc", "classification mAP", "COCO AP"} <= set(found)
    for a, b in zip(entries(one), entries(evaluated), strict=True):
        assert (a["image_id"], a["category_id"]) == (b["image_id"], b["category_id"])
        assert a["bbox"] == pytest.approx(b["bbox"], abs=1e-3)
        assert a["score"] == pytest.approx(b["score"], abs=1e-5)


def test_passes_are_chosen_by_name(evaluated, trained_run, tmp_path, capsys):
    everything = read_report(evaluated)["summary"]
    none = read_report(measure(trained_run, tmp_path / "a", "--passes"))["summary"]
    assert none["mAP50"] == everything["mAP50"] and "CorLoc" not in none
    further = ["--set", "passes.coco.evaluators=coco", "--set", "passes.coco.max_per_image=1"]
    one = read_report(measure(trained_run, tmp_path / "b", "--passes", "coco", *further))["summary"]
    assert "CorLoc" not in one and one["mAP50"] == everything["mAP50"]
    assert one["COCO AR_100"] == one["COCO AR_1"] <= everything["COCO AR_1"]
    named = ["--passes", "corlok"]
    given = ["--workdir", trained_run.workdir, "--out", tmp_path / "c", *named]
    refused(evaluate.main, given, "'corlok'.*corloc", capsys)
    assert not (tmp_path / "c").exists()


# -- files in and out


def test_coco_set_of_detections_is_read_back(evaluated, trained_run, tmp_path):
    (tmp_path / "annotations").mkdir()
    shutil.copy(
        evaluated / "detections.coco.json", tmp_path / "annotations" / "instances_found.json"
    )
    shutil.copytree(trained_run.data / "JPEGImages", tmp_path / "found")
    source = json.loads((evaluated / "detections.coco.json").read_text())["info"]["source"]
    assert source == "oim, step 4"
    test = Voc(root=trained_run.data).images("test")
    results = read_results(evaluated / "predictions.json", test)
    reader = Coco(root=tmp_path, train_split="found", test_split="found")
    read, boxes = reader.images("found"), reader.annotated_boxes("found").boxes
    assert read.class_names == test.class_names
    assert sorted(read.image_ids) == sorted(test.image_ids)
    for image_id, result in zip(test.image_ids, results, strict=True):
        found = boxes[image_id]
        assert len(found.boxes) == len(result.boxes) > 0
        order, expected = (
            np.lexsort((*np.round(b, 2).T, c))
            for b, c in ((found.boxes, found.classes), (result.boxes, result.classes))
        )
        np.testing.assert_array_equal(found.classes[order], result.classes[expected])
        np.testing.assert_allclose(found.boxes[order], result.boxes[expected], atol=1e-4)


def test_a_written_data_set_is_scored_as_its_results_file(evaluated, trained_run, tmp_path):
    """And of what evaluators are named, these alone are measured."""
    found = {}
    for name in ("predictions.json", "detections.coco.json"):
        given = ["--workdir", trained_run.workdir, "--predictions", evaluated / name]
        given += ["--out", tmp_path / name, "--figures", "0"]
        given += ["--set", "evaluators=('corloc','coco')"]
        assert evaluate.main([str(argument) for argument in given]) == 0
        found[name] = read_report(tmp_path / name)["summary"]
    first, second = found.values()
    assert first == second and first["CorLoc"] > 0 and {"COCO AP", "COCO AR_100"} <= set(first)
    assert "mAP50" not in first


def test_objects_as_pseudo_boxes_are_perfect(trained_run, tmp_path, monkeypatch):
    """A file of all objects of the training split, and of one more box that is wrong."""
    monkeypatch.setattr(measuring, "load_run", None)  # no model
    reader = Voc(root=trained_run.data)
    records = as_results(reader.annotated_boxes("trainval").boxes)
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps(records))
    arguments = ["--workdir", str(trained_run.workdir), "--pseudo", str(path), "--figures", "0"]
    assert evaluate.main(arguments) == 0
    summary = read_report(tmp_path / "boxes_scored")["summary"]
    expected = {"precision": 1, "recall": 1, "ABO": 1, "size ratio": 1}
    expected["boxes per image"] = len(records) / 8
    assert summary == pytest.approx(expected)

    wrong = {**records[0], "bbox": [0.0, 0.0, 1.0, 1.0]}
    path.write_text(json.dumps([*records, wrong]))
    assert evaluate.main(arguments) == 0
    report = read_report(tmp_path / "boxes_scored")
    assert report["summary"]["recall"] == 1 and report["summary"]["precision"] < 1
    row = report["per_class"][wrong["category_id"] - 1]
    assert row["precision"] == pytest.approx((row["boxes"] - 1) / row["boxes"])


# -- images that are not there


def as_results(objects: dict) -> list[dict]:
    """Return image id -> objects as a COCO results file has them, all as sure."""
    return [
        {
            "image_id": image_id,
            "category_id": int(c) + 1,
            "bbox": [*map(float, (x1, y1, x2 - x1, y2 - y1))],
            "score": 1.0,
        }
        for image_id, of_image in objects.items()
        for (x1, y1, x2, y2), c in zip(of_image.boxes, of_image.classes, strict=True)
    ]


def join_splits(data: Path) -> list[str]:
    """Write the split "all", 12 images, of which one may be missing; return its image ids."""
    folder = data / "ImageSets" / "Main"
    text = "".join((folder / f"{split}.txt").read_text() for split in ("test", "trainval"))
    (folder / "all.txt").write_text(text)
    return text.split()


@pytest.fixture
def moved_data(trained_run, tmp_path):
    """A copy of the data, to damage, and the argument that evaluates there."""
    data = Path(shutil.copytree(trained_run.data, tmp_path / "data"))
    return data, ["--set", f"data.root={data}"]


def test_missing_images_are_told_first_and_their_objects_missed(trained_run, moved_data, tmp_path):
    data, there = moved_data
    ids = join_splits(data)
    given = ["--split", "all", "--passes", *there]
    whole = read_report(measure(trained_run, tmp_path / "a", *given))
    objects = Voc(root=data).annotated_boxes("all").boxes
    gone = max(ids, key=lambda image_id: len(objects[image_id].boxes))
    (data / "JPEGImages" / f"{gone}.jpg").unlink()
    folder = measure(trained_run, tmp_path / "b", *given)
    report = read_report(folder)
    (told,) = report["left_out"]
    assert "1 of 12 images" in told and f"missing or broken ({gone})" in told
    lines = [line for line in (folder / "report.md").read_text().splitlines() if line]
    assert lines[1] == f"**{told}**" and lines[2] == "## Summary"
    counts = [sum(row["objects"] for row in one["per_class"]) for one in (report, whole)]
    assert counts[0] == counts[1] == sum(len(one.boxes) for one in objects.values())
    hits = [sum(row["hits"] for row in one["per_class"]) for one in (report, whole)]
    assert hits[0] <= hits[1]
    assert gone not in {entry["image_id"] for entry in entries(folder)}


def test_a_split_of_which_much_is_missing_is_refused(trained_run, moved_data, tmp_path, capsys):
    data, there = moved_data
    image = Voc(root=data).images("test").records[1]
    image.path.unlink()  # one of four
    given = ["--workdir", trained_run.workdir, "--out", tmp_path / "o", *there]
    refused(evaluate.main, given, "1 of .*4 images", capsys)
    assert not (tmp_path / "o").exists()


def test_missed_objects_lower_the_score(trained_run, moved_data, tmp_path):
    """All objects of a split as predictions are perfect until a file with some of them is gone."""
    data, there = moved_data
    join_splits(data)
    images, truth = Voc(root=data).images("all"), Voc(root=data).annotated_boxes("all").boxes

    def score(ids) -> dict:
        records = as_results({image_id: truth[image_id] for image_id in ids})
        (tmp_path / "p.json").write_text(json.dumps(records))
        given = ["--workdir", str(trained_run.workdir), "--predictions", str(tmp_path / "p.json")]
        assert evaluate.main([*given, "--split", "all", "--figures", "0", *there]) == 0
        return read_report(tmp_path / "p_scored")

    perfect = score(images.image_ids)
    assert perfect["summary"] == {"mAP50": 1, "mAP75": 1} and not perfect["left_out"]
    gone = max(images.image_ids, key=lambda image_id: len(truth[image_id].boxes))
    (data / "JPEGImages" / f"{gone}.jpg").unlink()
    less = score([image_id for image_id in images.image_ids if image_id != gone])
    assert gone in less["left_out"][0]
    assert "input of voc data all: bad_image 1" in less["notes"]  # a file has no views
    lost = np.bincount(truth[gone].classes, minlength=len(images.class_names))
    for row, missed in zip(less["per_class"], lost, strict=True):
        if row["objects"]:
            assert row["AP50"] == pytest.approx(1 - missed / row["objects"])


def test_a_split_without_annotations_says_what_is_not_measured(
    trained_run, moved_data, tmp_path, monkeypatch
):
    data, there = moved_data
    shutil.rmtree(data / "Annotations")
    kept = stop(monkeypatch, 0, None)
    folder = measure(trained_run, tmp_path / "o", *there)
    report = read_report(folder)
    assert set(report["summary"]) == {"seconds_per_image"} and not report["per_class"]
    for name in ("boxes", "corloc"):
        assert sum(f"{name} not measured" in note for note in report["notes"]) == 1
    assert sorted(kept) == [0, 1, 2, 3]  # nothing is predicted for a pass that measures nothing
    assert len(entries(folder)) > 0


# -- labels and ids


def test_image_ap_does_not_depend_on_what_training_does_with_difficult_objects(
    trained_run, tmp_path, monkeypatch
):
    """A class that is only difficult in an image is neither there nor absent."""
    names = Voc(root=trained_run.data).images("test").class_names
    objects = {
        f"{n}": (
            (64, 64),
            [(names[n % 2], (5, 5, 40, 40), False), (names[2], (8, 8, 50, 50), n < 3)],
        )
        for n in range(6)
    }
    root = write_voc(tmp_path / "voc", objects, split="test", classes=names)
    proposals = tmp_path / "proposals.npz"
    run_selective_search(
        Voc(root=root).images("test"), proposals, options=SearchOptions(min_side=6.0)
    )
    there = ["--set", f"data.root={root}", "--set", f"proposals.path={proposals}", "--passes"]
    found, read = {}, Voc.images
    for difficult in ("drop", "keep", "ignore"):
        with monkeypatch.context() as patch:
            patch.setattr(
                Voc,
                "images",
                lambda self, split, d=difficult: read(
                    dataclasses.replace(self, difficult=d), split
                ),
            )
            labels = Voc(root=root).images("test").labels[:3, 2]
            report = read_report(measure(trained_run, tmp_path / difficult, *there))
        assert set(labels) == {{"drop": 0, "keep": 1, "ignore": -1}[difficult]}
        found[difficult] = report["summary"]["classification mAP"]
        assert (
            report["per_class"][2]["classification AP"] == 1.0
        )  # of the images left it is in every one
    assert found["drop"] == found["keep"] == found["ignore"] > 0


def test_results_of_a_coco_set_carry_its_own_ids(trained_run, tmp_path):
    """Trained and tested on a tiny tree in COCO layout; image numbers and category ids have gaps."""
    config = trained_run.config.copy_and_resolve_references()
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    images = [
        {"id": 1000 + 37 * n, "file_name": f"photo_{n}.png", "height": 64, "width": 80}
        for n in range(4)
    ]
    annotations = [
        {
            "id": n + 1,
            "image_id": image["id"],
            "category_id": (18, 90)[n % 2],
            "bbox": [10, 12, 40, 30],
            "area": 1200,
            "iscrowd": 0,
        }
        for n, image in enumerate(images)
    ]
    content = {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": 90, "name": "toothbrush"}, {"id": 18, "name": "dog"}],
    }
    path = tmp_path / "coco" / "annotations" / "instances_tiny.json"
    path.write_text(json.dumps(content))
    for n, image in enumerate(images):
        save_image(tmp_path / "coco" / "tiny" / image["file_name"], pixels(n, 64, 80))

    root = str(tmp_path / "coco")
    config.data = dict(reader="coco", root=root, train_split="tiny", test_split="tiny")
    config.proposals.path = str(tmp_path / "proposals.npz")
    run_selective_search(
        Coco(root=root, train_split="tiny", test_split="tiny").images("tiny"),
        tmp_path / "proposals.npz",
        options=SearchOptions(min_side=6.0),
    )
    config.train.num_steps, config.eval.passes = 0, {}
    config.log.image_interval = 0
    train(config, tmp_path / "run")
    given = ["--workdir", str(tmp_path / "run"), "--coco", "--coco_set", *NO_FIGURES]
    assert evaluate.main(given) == 0
    folder = tmp_path / "run" / "evaluation" / "0"
    found = entries(folder)
    assert {entry["image_id"] for entry in found} == {image["id"] for image in images}
    assert {entry["category_id"] for entry in found} == {18, 90}
    told = json.loads((folder / "detections.coco.json").read_text())
    assert {c["name"]: c["id"] for c in told["categories"]} == {"toothbrush": 90, "dog": 18}
    assert [image["file_name"] for image in told["images"]] == [i["file_name"] for i in images]
    assert [image["id"] for image in told["images"]] == [image["id"] for image in images]
    summary = read_report(folder)["summary"]
    assert {"COCO AP", "COCO AR_100", "mAP50"} <= set(summary)
    # pycocotools itself reads the file and the annotations, and finds the same
    judge = COCOeval(COCO(str(path)), COCO(str(path)).loadRes(found), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert summary["COCO AP"] == pytest.approx(judge.stats[0], abs=1e-6)
    assert summary["COCO AR_100"] == pytest.approx(judge.stats[8], abs=1e-6)
