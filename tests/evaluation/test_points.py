"""Tables of points and of class scores hold what was read of each image, in the order given."""

import csv
import types

import numpy as np

from tests.evaluation.test_maps import image_maps, view
from wsod_jax.evaluation.formats import write_image_scores, write_points
from wsod_jax.types import ImageResult

IMAGES = types.SimpleNamespace(image_ids=("a", "b,c", "d"), class_names=("cat", "dog", "hen"))
SCORES = np.array([0.75, 0.25, 0.123456789], np.float32)


def rows_of(path):
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_points_of_the_classes_that_were_read(tmp_path):
    maps = [image_maps(view(0, classes=2), classes=[0, 2], predicted=[0])]
    maps.append(image_maps(view(1, classes=0), classes=[]))
    results = [
        ImageResult(index, (7, 9), image_scores=SCORES, maps=of_image)
        for index, of_image in zip((1, 0), maps, strict=True)
    ]
    path = write_points(tmp_path / "below" / "points.csv", results, IMAGES)
    head, *rows = rows_of(path)
    assert head == ["image", "class", "x", "y", "score", "predicted"]
    points = [[f"{value:.1f}" for value in maps[0].point(c)] for c in (0, 2)]
    assert rows == [
        ["b,c", "cat", *points[0], "0.750000", "1"],
        ["b,c", "hen", *points[1], "0.123457", "0"],
    ]
    assert rows_of(write_points(path, [], IMAGES)) == [head]


def test_scores_of_every_class(tmp_path):
    results = [ImageResult(index, (7, 9), image_scores=SCORES) for index in (2, 0)]
    path = write_image_scores(tmp_path / "scores.csv", results, IMAGES, IMAGES.class_names)
    values = ["0.750000", "0.250000", "0.123457"]
    assert rows_of(path) == [["image", "cat", "dog", "hen"], ["d", *values], ["a", *values]]
