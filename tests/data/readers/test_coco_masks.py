"""Masks of COCO files: which annotations have one, and damaged ones are named; see tests/ops/test_masks.py."""

import json

import numpy as np
import pytest

from tests.data.readers.test_coco import CATEGORIES, IMAGES, annotation, as_dict, write
from tests.oracles.masks import run_lengths
from wsod_jax.data.readers.coco import Coco
from wsod_jax.errors import DataError

SQUARE = [[2, 1, 6, 1, 6, 4, 2, 4]]


def full(mask, height, width):
    pixels = np.zeros((height, width), bool)
    h, w = mask.pixels.shape
    pixels[mask.top : mask.top + h, mask.left : mask.left + w] = mask.pixels
    return pixels


def test_instances(tmp_path):
    crowd = np.zeros((20, 30), bool)
    crowd[4:9, 3:5] = crowd[0, 29] = True
    items = [
        annotation(1, 9, 18, [2, 1, 4, 3], segmentation=SQUARE, area=11.5),
        annotation(2, 9, 1, [0, 0, 30, 20], iscrowd=1, segmentation={"size": [20, 30], "counts": run_lengths(crowd)}),
        annotation(3, 9, 90, [2, 1, 4, 3], segmentation=[]),
        annotation(4, 4, 90, [2, 1, 4, 3]),
        annotation(5, 4, 90, [2, 1, 4, 3], segmentation=[[1, 1, 2, 2]]),
        annotation(6, 11, 1, [0, 0, 1, 1], segmentation=[[3.0, 3.0, 3.1, 3.0, 3.1, 3.1]]),  # of no pixel
        annotation(7, 7, 1, [0, 0, 1, 1], segmentation={"size": [16, 17], "counts": [272]}),
    ]  # fmt: skip
    data = Coco(root=write(tmp_path, content={"annotations": items}))
    assert data.has_instances and not data.has_label_maps
    instances = data.instances("val2014")
    assert [instances[i]().num_without for i in ("b", "sub/a", "d")] == [1, 2, 0]
    assert tuple(instances) == data.images("val2014").image_ids
    found = instances["b"]()
    square = np.zeros((8, 10), bool)
    square[1:4, 2:6] = True
    np.testing.assert_array_equal(full(found.masks[0], 8, 10), square)
    assert found.masks[0].pixels.shape == (3, 4)
    np.testing.assert_array_equal(full(found.masks[1], 20, 30), crowd)
    assert found.classes.tolist() == [1, 0] and found.classes.dtype == np.int32
    assert found.ignore.tolist() == found.crowd.tolist() == [False, True]
    assert found.areas.tolist() == [11.5, 11] and found.areas.dtype == np.float32
    empty = instances["sub/a"]()
    assert empty.masks == () and empty.classes.shape == empty.areas.shape == (0,)
    [nothing] = instances["d"]().masks
    assert nothing.pixels.size == 0
    with pytest.raises(DataError, match=r"val2014\.json: annotation 7: .*\(16, 17\).*\(16, 16\)"):
        instances["c"]()


def test_an_exported_set_from_anywhere(tmp_path):
    """Files by name below another folder; scores, a source, and other keys are of no account."""
    write(tmp_path, folder="pictures/of/train")
    content = {
        "info": {"source": "oim_ir"},
        "images": [{**image, "license": 3} for image in IMAGES],
        "categories": [{**category, "supercategory": "x"} for category in CATEGORIES],
        "annotations": [annotation(1, 9, 18, [2, 1, 4, 3], score=0.25, row=7, segmentation=SQUARE)],
    }
    (tmp_path / "pseudo_train.json").write_text(json.dumps(content))
    options = dict(annotations="pseudo_{split}.json", image_folder="pictures/of/{split}")
    data = Coco(root=tmp_path, **options)
    assert as_dict(data.images("train")) == {
        "b": (0, 1, 0),
        "sub/a": (0, 0, 0),
        "c": (0, 0, 0),
        "d": (0, 0, 0),
    }
    np.testing.assert_array_equal(data.boxes("train").boxes[0].boxes, [[2, 1, 6, 4]])
    assert data.instances("train")["b"]().masks[0].pixels.all()
    with pytest.raises(DataError, match=r"pseudo_val\.json.*found.*train"):
        data.images("val")
    with pytest.raises(DataError, match="images.*elsewhere/train"):
        Coco(root=tmp_path, **{**options, "image_folder": "elsewhere/{split}"}).images("train")
    absolute = Coco(root="nowhere", **{key: str(tmp_path / value) for key, value in options.items()})  # fmt: skip
    assert absolute.images("train") == data.images("train")
    fixed = Coco(root=tmp_path, annotations="pseudo_train.json", image_folder="pictures/of/train")
    assert fixed.images("any").records == data.images("train").records
