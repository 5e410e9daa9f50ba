"""Pasting against the literal loops; polygons and run-length encoding against pycocotools."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from tests.oracles.masks import run_lengths
from wsod_jax.errors import DataError
from wsod_jax.ops.masks import (
    cut_masks,
    decode_mask,
    fill_boxes,
    fill_ellipses,
    has_mask,
    mask_to_rle,
    paste_masks,
    rle_to_mask,
    superpixel_rles,
    tight_box,
)
from wsod_jax.types import Mask

SQUARE = [[2, 1, 6, 1, 6, 4, 2, 4]]


def full(mask: Mask, size):
    """Return the whole image's pixels."""
    image = np.zeros(size, bool)
    height, width = mask.pixels.shape
    image[mask.top : mask.top + height, mask.left : mask.left + width] = mask.pixels
    return image


def paste_in_loops(cells, box, size):
    """Return the interpolated values [height, width] of one mask, pixel by pixel."""
    p, (x1, y1, x2, y2) = len(cells), box
    values = np.zeros(size)
    for i in range(size[0]):
        for j in range(size[1]):
            if not (x1 < j + 1 and j < x2 and y1 < i + 1 and i < y2):
                continue  # the box does not touch the pixel
            u = (j + 0.5 - x1) / (x2 - x1) * p - 0.5
            v = (i + 0.5 - y1) / (y2 - y1) * p - 0.5
            for row in range(p):
                for column in range(p):
                    weight = max(0, 1 - abs(u - column)) * max(0, 1 - abs(v - row))
                    values[i, j] += weight * cells[row, column]
    return values


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    p=st.sampled_from([1, 2, 7]),
    corners=st.lists(st.floats(-20, 40, width=32), min_size=4, max_size=4),
    threshold=st.sampled_from([0.3, 0.5]),
)
def test_pasting_agrees_with_the_loops(seed, p, corners, threshold):
    x1, x2, y1, y2 = *sorted(corners[:2]), *sorted(corners[2:])
    box, size = np.array([x1, y1, x2, y2], np.float32), (17, 23)
    cells = np.random.default_rng(seed).random((p, p)).astype(np.float32)
    [mask] = paste_masks(cells[None], box[None], size, threshold=threshold)
    if x2 <= x1 or y2 <= y1:
        assert mask.pixels.size == 0
        return
    values = paste_in_loops(cells.astype(float), box.astype(float), size)
    clear = np.abs(values - threshold) > 1e-4  # rounding decides the others
    np.testing.assert_array_equal(full(mask, size)[clear], (values >= threshold)[clear])


def test_a_mask_of_ones_fills_its_box_and_the_edge_is_half():
    ones = np.ones((1, 28, 28), np.float32)
    [mask] = paste_masks(ones, np.array([[3, 2, 31, 30]]), (40, 50))  # one cell a pixel
    assert (mask.top, mask.left, mask.pixels.shape) == (2, 3, (28, 28)) and mask.pixels.all()
    # Pixel centers lie on the box's edges x1 = 3.5 and x2 = 7.5, where the value is exactly 1/2.
    [mask] = paste_masks(ones[:, :4, :4], np.array([[3.5, 2, 7.5, 6]]), (40, 50))
    assert mask.pixels.shape == (4, 5) and mask.pixels.all()
    [mask] = paste_masks(ones[:, :4, :4], np.array([[3.5, 2, 7.5, 6]]), (40, 50), threshold=0.51)
    assert mask.pixels[1].tolist() == [False, True, True, True, False]


@pytest.mark.parametrize(
    "box",
    [[5, 5, 5, 9], [9, 5, 5, 9], [-9, 0, 0, 9], [50, 0, 60, 9], [0, 40, 9, 90], [0, -9, 9, -1]],
)
def test_a_box_without_area_or_outside_has_an_empty_window(box):
    [mask] = paste_masks(np.ones((1, 3, 3)), np.array([box]), (40, 50))
    assert mask.pixels.shape == (0, 0) and mask.pixels.dtype == bool
    assert not full(mask, (40, 50)).any() and np.ptp(tight_box(mask)[::2]) == 0
    assert not coco_mask.decode(mask_to_rle(mask, (40, 50))).any()


def test_no_masks():
    assert paste_masks(np.zeros((0, 28, 28)), np.zeros((0, 4)), (40, 50)) == ()


def random_mask(rng, size):
    height, width = rng.integers(0, size[0] + 1), rng.integers(0, size[1] + 1)
    top = rng.integers(0, size[0] - height + 1)
    left = rng.integers(0, size[1] - width + 1)
    return Mask(int(top), int(left), rng.random((height, width)) < rng.choice([0.02, 0.5, 1]))


@settings(deadline=None, max_examples=100)
@given(seed=st.integers(0, 10**6), size=st.sampled_from([(1, 1), (5, 9), (70, 3), (300, 400)]))
def test_rle_is_that_of_pycocotools_and_comes_back(seed, size):
    mask = random_mask(np.random.default_rng(seed), size)
    image = full(mask, size)
    rle = mask_to_rle(mask, size)
    assert rle["size"] == list(size) and isinstance(rle["counts"], str)
    np.testing.assert_array_equal(coco_mask.decode(rle), image)
    runs = np.flatnonzero(np.diff(image.T.ravel(), prepend=False)).tolist()
    runs = np.diff([0, *runs, image.size]).tolist()
    as_bytes = {**rle, "counts": rle["counts"].encode()}
    for form in (rle, as_bytes, {**rle, "counts": runs}):
        read = rle_to_mask(form, size)
        np.testing.assert_array_equal(full(read, size), image)
        assert read.pixels.dtype == bool and read.pixels.flags.c_contiguous
        if image.any():  # the window is tight
            assert read.pixels.any(axis=0)[[0, -1]].all() and read.pixels.any(axis=1)[[0, -1]].all()
        else:
            assert read.pixels.shape == (0, 0)


def test_tight_boxes_are_those_of_pycocotools():
    rng = np.random.default_rng(3)
    for _ in range(30):
        mask = random_mask(rng, (20, 30))
        x, y, width, height = coco_mask.toBbox(mask_to_rle(mask, (20, 30)))
        if width:
            np.testing.assert_array_equal(tight_box(mask), [x, y, x + width, y + height])
            assert tight_box(mask).dtype == np.float32


def test_tight_box_has_continuous_edges():
    mask = np.zeros((4, 6), bool)
    assert tight_box(Mask(0, 0, mask)).tolist() == [0, 0, 0, 0]
    mask[2, 3] = True
    assert tight_box(Mask(0, 0, mask)).tolist() == [3, 2, 4, 3]
    mask[0, 5] = True
    assert tight_box(Mask(0, 0, mask)).tolist() == [3, 0, 6, 3]


def test_a_mask_outside_its_image_is_refused():
    for mask in (Mask(0, 0, np.ones((5, 4), bool)), Mask(3, 2, np.ones((2, 2), bool))):
        with pytest.raises(DataError, match="(?s)columns.*\\(4, 4\\)"):
            mask_to_rle(mask, (4, 4))


@pytest.mark.parametrize(
    ("rle", "words"),
    [
        ({"size": [5, 4], "counts": [20]}, r"\(5, 4\).*\(4, 5\)"),
        ({"size": [4, 5], "counts": [3, 2]}, "cover 5 pixels.*20"),
        ({"size": [4, 5], "counts": [3, 2, 100]}, "cover 105"),
        ({"size": [4, 5], "counts": [3, -2, 19]}, "RLE"),
        ({"size": [4, 5], "counts": "1"}, "cover 1 "),  # pycocotools returns memory as it is
        ({"size": [4, 5], "counts": []}, "cover 0"),
        ({"size": [4, 5], "counts": ""}, "RLE"),
        ({"size": [4, 5], "counts": "zzz"}, "RLE"),
        ({"size": [4, 5], "counts": "é"}, "RLE"),
        ({"size": [4, 5], "counts": [1.5, 18.5]}, "RLE"),
        ({"size": [4, 5], "counts": ["a"]}, "RLE"),
        ({"size": [4, 5], "counts": "oooooooooooooooooooo0"}, "RLE"),
        ({"size": [4, 5], "counts": None}, "RLE"),
        ({"size": 4, "counts": [20]}, "RLE"),
        ({"size": [4, 5]}, "RLE"),
        ([[0, 0, 3, 0, 3, 3]], "Polygons"),
        ("text", "RLE"),
        (None, "RLE"),
    ],
)
def test_what_is_no_mask_of_the_image_is_named(rle, words):
    with pytest.raises(DataError, match=words):
        rle_to_mask(rle, (4, 5))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (40, 300)])
def test_run_lengths(size, share):
    pixels = np.random.default_rng(0).random(size) < share
    pixels[:, : size[1] // 3] = share > 0.1  # long runs: several characters a number
    compressed = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))["counts"]
    for counts in (run_lengths(pixels), compressed.decode(), compressed):
        segmentation = {"size": list(size), "counts": counts}
        assert has_mask(segmentation)
        np.testing.assert_array_equal(full(decode_mask(segmentation, size, "x"), size), pixels)


def test_a_square():
    expected = np.zeros((8, 10), bool)
    expected[1:4, 2:6] = True
    np.testing.assert_array_equal(full(decode_mask(SQUARE, (8, 10), "x"), (8, 10)), expected)
    expected[6:8, 8:10] = True  # the union, clipped
    two = [*SQUARE, [8, 6, 30, 6, 30, 9, 8, 9]]
    np.testing.assert_array_equal(full(decode_mask(two, (8, 10), "x"), (8, 10)), expected)


@pytest.mark.parametrize("seed", range(5))
def test_polygons_are_those_of_pycocotools(seed):
    rng = np.random.default_rng(seed)
    polygons = [rng.uniform(-5, 40, 2 * rng.integers(3, 9)).tolist() for _ in range(3)]
    runs = coco_mask.merge(coco_mask.frPyObjects(polygons, 30, 37))
    expected = coco_mask.decode(runs).astype(bool)
    np.testing.assert_array_equal(full(decode_mask(polygons, (30, 37), "x"), (30, 37)), expected)
    # A line is no area, and four numbers no box:
    np.testing.assert_array_equal(
        full(decode_mask([[0, 0, 9, 9], *polygons], (30, 37), "x"), (30, 37)), expected
    )


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ({"size": [4, 5], "counts": [3, 2]}, "cover 5 pixels.*20"),  # pycocotools: noise
        ({"size": [4, 5], "counts": [3, 200]}, "cover 203"),
        ({"size": [4, 5], "counts": [-3, 23]}, "RLE"),
        ({"size": [4, 5], "counts": [3.5, 16.5]}, "RLE"),
        ({"size": [4, 5], "counts": []}, "cover 0"),
        ({"size": [4, 5], "counts": ""}, "RLE"),
        ({"size": [4, 5], "counts": "hello"}, "RLE"),
        ({"size": [4, 5], "counts": "01"}, "cover 1 "),
        ({"size": [4, 5], "counts": "é\x01"}, "RLE"),
        ({"size": [4, 5], "counts": None}, "RLE"),
        ({"size": [5, 4], "counts": [20]}, r"\(5, 4\).*\(4, 5\)"),
        ({"size": "large", "counts": [20]}, "large"),
        ({"counts": [20]}, "RLE"),
        ("a polygon", "RLE"),
        ([[0, 0, 3, 3, 3, float("nan")]], "polygon"),
        ([[0, 0, 3, 3, 3, 1e12]], "65536"),
        ([[0, 0, 3, 3, 3, 3, 1]], "polygon"),
        ([[0, 0, 3, 3, 3, "x"]], "polygon"),
        ([[[0, 0], [3, 3], [3, 0]]], "polygon"),
        ([SQUARE[0], None], "polygon"),
    ],
)
def test_faults_are_named(segmentation, message):
    with pytest.raises(DataError, match=rf"^annotation 7: .*{message}"):
        decode_mask(segmentation, (4, 5), "annotation 7")


def test_every_compressed_number():
    """Golden: pycocotools' text of run lengths around each number of characters."""
    lengths = [0, 1, 15, 16, 17, 511, 512, 16_383, 16_384, 17_000]
    for first, second in itertools.product(lengths, repeat=2):
        counts = [first, second, 31, 5, 600, 2]
        total = sum(counts)
        text = coco_mask.frPyObjects({"size": [total, 1], "counts": counts}, total, 1)["counts"]
        expected = np.repeat([False, True] * 3, counts)[:, None]
        segmentation = {"size": [total, 1], "counts": text.decode()}
        np.testing.assert_array_equal(
            full(decode_mask(segmentation, (total, 1), "x"), (total, 1)), expected
        )


def test_masks_cut_from_class_maps():
    """Pixels whose centers lie in the box, where the map of the box's class reaches the threshold."""
    rng = np.random.default_rng(2)
    maps = rng.random((5, 8, 2)).astype(np.float32)
    size, scale = (10, 16), 0.5
    boxes = np.array([[1.4, 2.6, 9.6, 8.5], [0, 0, 16, 10], [3.6, 3.6, 4.4, 4.4], [-4, -4, -1, 30]])
    classes = np.array([1, 0, 1, 0])
    found = cut_masks(maps, scale, boxes, classes, size, threshold=0.5)
    for mask, box, c in zip(found, boxes, classes, strict=True):
        pasted = np.zeros(size, bool)
        height, width = mask.pixels.shape
        pasted[mask.top : mask.top + height, mask.left : mask.left + width] = mask.pixels
        for i, j in np.ndindex(*size):
            inside = box[0] <= j + 0.5 < box[2] and box[1] <= i + 0.5 < box[3]
            v = min(max((i + 0.5) * scale - 0.5, 0), 4)
            u = min(max((j + 0.5) * scale - 0.5, 0), 7)
            a, b = int(v), int(u)
            below, right = min(a + 1, 4), min(b + 1, 7)
            top = maps[a, b, c] + (u - b) * (maps[a, right, c] - maps[a, b, c])
            bottom = maps[below, b, c] + (u - b) * (maps[below, right, c] - maps[below, b, c])
            value = top + (v - a) * (bottom - top)
            if abs(value - 0.5) > 1e-4:
                assert pasted[i, j] == (inside and value >= 0.5)
    assert found[2].pixels.size == 0 and found[3].pixels.size == 0
    as_bytes = cut_masks(np.round(maps * 255).astype(np.uint8), scale, boxes, classes, size)
    same = [(a.pixels == b.pixels).mean() for a, b in zip(found[:2], as_bytes[:2], strict=True)]
    assert min(same) > 0.97


def test_masks_cut_from_a_map_of_one_cell():
    [mask] = cut_masks(
        np.ones((1, 1, 1), np.float32), 0.1, np.array([[0, 0, 4, 3.0]]), np.zeros(1, int), (6, 8)
    )
    assert (mask.top, mask.left) == (0, 0) and mask.pixels.shape == (3, 4) and mask.pixels.all()


# -- masks made of boxes and of superpixels

SHAPES = {
    "box": (fill_boxes, lambda u, v: True),
    "ellipse": (fill_ellipses, lambda u, v: u * u + v * v <= 1),
}


def fill_in_loops(shape, box, size):
    """Return [height, width] bool, pixel by pixel; u and v are -1 and 1 on the edges of the box."""
    x1, y1, x2, y2 = map(float, box)
    image = np.zeros(size, bool)
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = i + 0.5, j + 0.5
            if x1 <= x < x2 and y1 <= y < y2:
                u, v = (2 * x - x1 - x2) / (x2 - x1), (2 * y - y1 - y2) / (y2 - y1)
                image[i, j] = SHAPES[shape][1](u, v)
    return image


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=60)
@given(st.lists(st.tuples(*[st.integers(-12, 60)] * 4), max_size=4))
def test_boxes_and_ellipses_are_those_of_the_loops(shape, corners):
    """Boxes at quarters of pixels, some inverted, without area or outside the image."""
    size, boxes = (9, 13), np.array(corners, np.float32).reshape(-1, 4) / 4
    found = SHAPES[shape][0](boxes, size)
    assert len(found) == len(boxes)
    for box, mask in zip(boxes, found, strict=True):
        assert mask.pixels.dtype == bool
        np.testing.assert_array_equal(full(mask, size), fill_in_loops(shape, box, size))


def test_an_ellipse_touches_its_box_and_has_its_area():
    box = np.float32([[10, 20, 190, 100]])
    [mask] = fill_ellipses(box, (120, 200))
    np.testing.assert_array_equal(tight_box(mask), box[0])
    assert mask.pixels.sum() == pytest.approx(np.pi * 90 * 40, rel=2e-3)
    np.testing.assert_array_equal(mask.pixels, mask.pixels[::-1, ::-1])


@settings(max_examples=30)
@given(st.integers(0, 10**6), st.integers(1, 7), st.integers(1, 9))
def test_rles_of_superpixels_are_those_of_their_pixels(seed, height, width):
    rng = np.random.default_rng(seed)
    superpixels = rng.integers(0, 5, (height, width))
    members = [rng.choice(7, rng.integers(0, 5), replace=False) for _ in range(4)]
    rles = superpixel_rles(superpixels, members, (height, width))
    for rle, chosen in zip(rles, members, strict=True):
        pixels = np.asfortranarray(np.isin(superpixels, chosen).astype(np.uint8))
        assert rle == coco_mask.encode(pixels)
        np.testing.assert_array_equal(full(rle_to_mask(rle, pixels.shape), pixels.shape), pixels)
