"""Prediction files come back bit for bit; wrong ones are named."""

import json

import numpy as np
import pytest

from tests.evaluation.test_average_precision import detections_of
from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.tables import DetectionTable
from wsod_jax.evaluation.predictions import (
    index_path,
    read_index,
    read_predictions,
    write_predictions,
    write_voc_server,
)


def random_detections(rng, rows=200):
    corner = rng.uniform(0, 500, (rows, 2)).astype(np.float32)
    size = rng.exponential(80, (rows, 2)).astype(np.float32)
    return DetectionTable(
        image_index=rng.integers(0, 3, rows),
        classes=rng.integers(0, 2, rows),
        scores=rng.uniform(0, 3, rows).astype(np.float32) ** 9,
        boxes=np.concatenate([corner, corner + size], axis=1),
        num_images=3,
        num_classes=2,
    )


@pytest.mark.parametrize("ids", [("000012", "a b", "7"), ("12", "139", "7")])
@pytest.mark.parametrize("category_ids", [None, (18, 90)])
def test_round_trip_is_exact(tmp_path, ids, category_ids):
    table = random_detections(np.random.default_rng(0))
    path = write_predictions(
        tmp_path / "deep" / "predictions.json",
        table,
        image_ids=ids,
        class_names=("cat", "dog"),
        category_ids=category_ids,
    )
    read = read_predictions(path, image_ids=ids, class_names=("cat", "dog"))
    for name in ("image_index", "classes", "scores", "boxes"):
        np.testing.assert_array_equal(getattr(read, name), getattr(table, name))
    record = json.loads(path.read_text())[0]
    assert list(record) == ["image_id", "category_id", "bbox", "score"]
    assert record["image_id"] == (
        int(ids[table.image_index[0]]) if ids[0] == "12" else ids[table.image_index[0]]
    )
    assert not list(path.parent.glob("*.partial"))
    index = read_index(path)
    assert index.image_ids == ids and index.category_ids == (category_ids or (1, 2))


def test_classes_join_by_name_whatever_their_order(tmp_path):
    table = random_detections(np.random.default_rng(1))
    ids = ("a", "b", "c")
    path = write_predictions(tmp_path / "p.json", table, image_ids=ids, class_names=("cat", "dog"))
    read = read_predictions(path, image_ids=ids[::-1], class_names=("dog", "cat"))
    np.testing.assert_array_equal(read.classes, 1 - table.classes)
    np.testing.assert_array_equal(read.image_index, 2 - table.image_index)


def test_files_of_the_voc_server_count_pixels_from_one(tmp_path):
    detections = DetectionTable(
        image_index=[1, 0, 1],
        classes=[0, 2, 0],
        scores=[0.25, 1e-8, 0.1],
        boxes=[[0, 0, 10, 20], [4.5, 5, 30.25, 40], [1, 2, 3, 4]],
        num_images=2,
        num_classes=3,
    )
    folder = write_voc_server(
        tmp_path / "server", detections, image_ids=["000012", "x"], class_names=["a", "b", "c"]
    )
    assert {path.name: path.read_text() for path in folder.iterdir()} == {
        "comp4_det_test_a.txt": (
            "x 0.25 1.000 1.000 10.000 20.000\nx 0.100000001 2.000 3.000 3.000 4.000\n"
        ),
        "comp4_det_test_b.txt": "",
        "comp4_det_test_c.txt": "000012 9.99999994e-09 5.500 6.000 30.250 40.000\n",
    }


def test_empty_predictions(tmp_path):
    path = write_predictions(
        tmp_path / "p.json", detections_of([]), image_ids=("a",), class_names=("x",)
    )
    assert len(read_predictions(path, image_ids=("a",), class_names=("x",))) == 0


def test_file_from_elsewhere_needs_no_index(tmp_path):
    path = tmp_path / "p.json"
    path.write_text(
        '[{"image_id": 7, "category_id": 18, "bbox": [1, 2, 3, 4], "score": 0.5, "x": 1}]'
    )
    table = read_predictions(
        path, image_ids=("3", "7"), class_names=("cat", "dog"), category_ids={"cat": 17, "dog": 18}
    )
    assert table.image_index.tolist() == [1] and table.classes.tolist() == [1]
    assert table.boxes.tolist() == [[1, 2, 4, 6]]


GOOD = {"image_id": "a", "category_id": 1, "bbox": [0, 0, 1, 1], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[", "not valid JSON"),
        ("{}", "needed a list"),
        ([3], "entry 0"),
        ([GOOD, {**GOOD, "image_id": "zz"}], "entry 1 .* 'zz'"),
        ([{**GOOD, "category_id": 9}], "category 9"),
        ([{**GOOD, "category_id": [1]}], "entry 0"),
        ([{**GOOD, "category_id": 1.5}], "entry 0"),
        ([{**GOOD, "bbox": [0, 0, 1]}], "bbox"),
        ([{**GOOD, "bbox": [0, 0, -1, 1]}], "width >= 0"),
        ([{**GOOD, "score": "high"}], "entry 0"),
        ('[{"image_id": "a", "category_id": 1, "bbox": [0, 0, 1, 1], "score": NaN}]', "finite"),
        ([{"image_id": "a"}], "needed"),
    ],
)
def test_malformed_files_name_the_entry(tmp_path, content, message):
    path = tmp_path / "p.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=message):
        read_predictions(path, image_ids=("a",), class_names=("x",))


def test_missing_files_and_foreign_classes(tmp_path):
    with pytest.raises(DataError, match="does not exist"):
        read_predictions(tmp_path / "p.json", image_ids=(), class_names=())
    path = write_predictions(
        tmp_path / "p.json", detections_of([]), image_ids=("a",), class_names=("x",)
    )
    with pytest.raises(DataError, match="'y'"):
        read_predictions(path, image_ids=("a",), class_names=("y",))
    index_path(path).write_text("[]")
    with pytest.raises(DataError, match="categories"):
        read_index(path)
    with pytest.raises(DataError, match="image ids"):
        write_predictions(path, detections_of([]), image_ids=(), class_names=("x",))
