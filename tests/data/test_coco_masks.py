"""Masks of COCO files, against pycocotools and literal loops; damaged ones are named, never read as noise."""

import itertools
import json
import logging

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from tests.data.test_coco import CATEGORIES, IMAGES, annotation, as_dict, write
from wsod_jax.data.coco import Coco
from wsod_jax.data.coco_masks import decode_mask, has_mask
from wsod_jax.errors import DataError

SQUARE = [[2, 1, 6, 1, 6, 4, 2, 4]]


def run_lengths(pixels):
    """Run lengths in column order, zeros first: a loop."""
    counts, value = [0], False
    for pixel in np.asarray(pixels, bool).T.ravel():
        if pixel != value:
            counts.append(0)
            value = pixel
        counts[-1] += 1
    return counts


def full(mask, height, width):
    pixels = np.zeros((height, width), bool)
    h, w = mask.pixels.shape
    pixels[mask.top : mask.top + h, mask.left : mask.left + w] = mask.pixels
    return pixels


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (40, 300)])
def test_run_lengths(size, share):
    pixels = np.random.default_rng(0).random(size) < share
    pixels[:, : size[1] // 3] = share > 0.1  # long runs: several characters a number
    compressed = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"]
    for counts in (run_lengths(pixels), compressed.decode(), compressed):
        segmentation = {"size": list(size), "counts": counts}
        assert has_mask(segmentation)
        np.testing.assert_array_equal(decode_mask(segmentation, *size, "x"), pixels)


def test_a_square():
    expected = np.zeros((8, 10), bool)
    expected[1:4, 2:6] = True
    np.testing.assert_array_equal(decode_mask(SQUARE, 8, 10, "x"), expected)
    expected[6:8, 8:10] = True  # the union, clipped
    two = [*SQUARE, [8, 6, 30, 6, 30, 9, 8, 9]]
    np.testing.assert_array_equal(decode_mask(two, 8, 10, "x"), expected)


@pytest.mark.parametrize("seed", range(5))
def test_polygons_are_those_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    polygons = [rng.uniform(-5, 40, 2 * rng.integers(3, 9)).tolist() for _ in range(3)]
    runs = coco_mask.merge(coco_mask.frPyObjects(polygons, 30, 37))
    expected = coco_mask.decode(runs).astype(bool)
    np.testing.assert_array_equal(decode_mask(polygons, 30, 37, "x"), expected)
    # A line is no area, and four numbers no box:
    np.testing.assert_array_equal(decode_mask([[0, 0, 9, 9], *polygons], 30, 37, "x"), expected)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [4, 5], "counts": [3, 2]}, "sum to height × width, 20"),  # pycocotools: noise
        ({"size": [4, 5], "counts": [3, 200]}, "sum to"),
        ({"size": [4, 5], "counts": [-3, 23]}, "whole numbers"),
        ({"size": [4, 5], "counts": [3.5, 16.5]}, "whole numbers"),
        ({"size": [4, 5], "counts": []}, "sum to"),
        ({"size": [4, 5], "counts": ""}, "sum to"),
        ({"size": [4, 5], "counts": "hello"}, "damaged"),
        ({"size": [4, 5], "counts": "01"}, "damaged"),
        ({"size": [4, 5], "counts": "é\x01"}, "damaged"),
        ({"size": [4, 5], "counts": None}, "damaged"),
        ({"size": [5, 4], "counts": [20]}, r"of \(height, width\) \[5, 4\], the image of \[4, 5\]"),
        ({"size": "large", "counts": [20]}, "large"),
        ({"counts": [20]}, "allowed are a list of polygons"),
        ("a polygon", "allowed are a list of polygons"),
        ([[0, 0, 3, 3, 3, float("nan")]], "no polygon"),
        ([[0, 0, 3, 3, 3, 1e12]], "numbers up to 65536"),
        ([[0, 0, 3, 3, 3, 3, 1]], "no polygon"),
        ([[0, 0, 3, 3, 3, "x"]], "no polygon"),
        ([[[0, 0], [3, 3], [3, 0]]], "no polygon"),
        ([SQUARE[0], None], "no polygon"),
    ],
)
def test_faults_are_named(segmentation, message):
    with pytest.raises(DataError, match=rf"^annotation 7: .*{message}"):
        decode_mask(segmentation, 4, 5, "annotation 7")


def test_instances(tmp_path, caplog):
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
    with caplog.at_level(logging.WARNING):
        instances = data.instances("val2014")
    assert "3 annotations without a segmentation; ids 3, 4, 5" in caplog.text
    assert tuple(instances) == data.images("val2014").image_ids
    found = instances["b"]()
    np.testing.assert_array_equal(full(found.masks[0], 8, 10), decode_mask(SQUARE, 8, 10, "x"))
    assert found.masks[0].pixels.shape == (3, 4)
    np.testing.assert_array_equal(full(found.masks[1], 20, 30), crowd)
    assert found.classes.tolist() == [1, 0] and found.classes.dtype == np.int32
    assert found.ignore.tolist() == found.crowd.tolist() == [False, True]
    assert found.areas.tolist() == [11.5, 11] and found.areas.dtype == np.float32
    empty = instances["sub/a"]()
    assert empty.masks == () and empty.classes.shape == empty.areas.shape == (0,)
    [nothing] = instances["d"]().masks
    assert nothing.pixels.size == 0
    with pytest.raises(DataError, match=r"val2014\.json: annotation 7: .*\[16, 17\].*\[16, 16\]"):
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
    with pytest.raises(DataError, match=r"pseudo_val\.json: no such file; splits found: train"):
        data.images("val")
    with pytest.raises(DataError, match="no folder of images; looked for .*elsewhere/train"):
        Coco(root=tmp_path, **{**options, "image_folder": "elsewhere/{split}"}).images("train")
    absolute = Coco(root="nowhere", **{key: str(tmp_path / value) for key, value in options.items()})  # fmt: skip
    assert absolute.images("train") == data.images("train")
    fixed = Coco(root=tmp_path, annotations="pseudo_train.json", image_folder="pictures/of/train")
    assert fixed.images("any").records == data.images("train").records


def test_every_compressed_number():
    """Golden: pycocotools' text of run lengths around each number of characters."""
    lengths = [0, 1, 15, 16, 17, 511, 512, 16_383, 16_384, 17_000]
    for first, second in itertools.product(lengths, repeat=2):
        counts = [first, second, 31, 5, 600, 2]
        total = sum(counts)
        text = coco_mask.frPyObjects({"size": [total, 1], "counts": counts}, total, 1)["counts"]
        expected = np.repeat([False, True] * 3, counts)[:, None]
        segmentation = {"size": [total, 1], "counts": text.decode()}
        np.testing.assert_array_equal(decode_mask(segmentation, total, 1, "x"), expected)
