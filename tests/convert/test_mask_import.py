"""Importers of masks: MCG's superpixels and JSON lists of run-length encodings."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from scipy.io import savemat

from tests.convert.test_proposal_import import IDS, MATLAB, cells, images, numbered
from wsod_jax.commands import make_proposals
from wsod_jax.convert.proposal_import import import_proposals
from wsod_jax.data.proposals.mask_set import open_masks
from wsod_jax.data.synthetic.dataset import SyntheticSpec, write_synthetic
from wsod_jax.errors import DataError

HEIGHT, WIDTH = SIZE = (20, 30)


def superpixels(seed=0):
    """Return [H, W] numbers of rectangles of 4 × 5 pixels, from 1, without 7."""
    rows, columns = np.arange(HEIGHT) // 4, np.arange(WIDTH) // 5
    numbers = np.random.default_rng(seed).permutation(np.delete(np.arange(32), [0, 7]))
    return numbers[rows[:, None] * 6 + columns].astype(np.uint16)


def regions(seed=0, count=4):
    rng = np.random.default_rng(seed + 100)
    numbers = np.unique(superpixels(seed))
    return [rng.choice(numbers, k + 1, replace=False) for k in range(count)]


def write_mcg(path, seed=0, **changes):
    shapes = [numbers[None, :].astype(np.float64) for numbers in regions(seed)]
    shapes[1] = shapes[1].T.astype(np.uint32)
    content = {
        "superpixels": superpixels(seed),
        "labels": cells(shapes, (-1, 1)),
        "scores": np.array([[0.5], [4], [3], [1]]),
        # as MCG writes them: without near duplicates, so in other rows
        "bboxes": MATLAB[:2],
        "bboxes_scores": np.array([[2.0], [1]]),
    } | changes
    savemat(path, {name: value for name, value in content.items() if value is not None})


def box_in_loops(pixels):
    """Return the box around pixels."""
    at = [(y, x) for y in range(HEIGHT) for x in range(WIDTH) if pixels[y, x]]
    ys, xs = zip(*at, strict=True)
    return [min(xs), min(ys), max(xs) + 1, max(ys) + 1]


def full(mask):
    image = np.zeros(SIZE, bool)
    height, width = mask.pixels.shape
    image[mask.top : mask.top + height, mask.left : mask.left + width] = mask.pixels
    return image


def assert_imported(result, expected):
    """`expected`: image id -> pixels of its proposals."""
    for image_id, shapes in expected.items():
        boxes = result.proposals.get(image_id)
        masks = result.masks.masks(image_id, range(len(boxes)))
        assert len(boxes) == len(shapes)
        for box, mask, pixels in zip(boxes, masks, shapes, strict=True):
            np.testing.assert_array_equal(full(mask), pixels)
            assert box.tolist() == box_in_loops(pixels)


def test_mcg_superpixels(tmp_path):
    for seed, image_id in enumerate(IDS):
        write_mcg(tmp_path / f"{image_id}.mat", seed)
    result = import_proposals(tmp_path, images())
    shapes = {
        image_id: [np.isin(superpixels(seed), numbers) for numbers in regions(seed)]
        for seed, image_id in enumerate(IDS)
    }
    assert_imported(result, shapes)
    assert result.proposals.get_scores(IDS[1]).tolist() == [0.5, 4, 3, 1]
    assert result.empty == 0 and "one around a mask" in result.summary

    done = []
    best = import_proposals(tmp_path, images(), num=2, report=lambda *numbers: done.append(numbers))
    assert_imported(best, {image_id: of[1:3] for image_id, of in shapes.items()})
    assert best.proposals.get_scores(IDS[2]).tolist() == [4, 3]
    assert "at most 2" in best.proposals.generator and done == [(1, 3), (2, 3), (3, 3)]


def test_a_proposal_of_no_superpixel_is_left_out_and_counted(tmp_path):
    chosen = [np.zeros((0, 0)), regions()[0][None, :]]
    write_mcg(tmp_path / f"{IDS[0]}.mat", labels=cells(chosen, (-1, 1)), scores=[[9.0], [8.0]])
    result = import_proposals(tmp_path, images(IDS[:1]))
    assert_imported(result, {IDS[0]: [np.isin(superpixels(), regions()[0])]})
    assert result.proposals.get_scores(IDS[0]).tolist() == [8] and result.empty == 1
    assert "1 masks without a pixel" in result.summary


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"superpixels": superpixels().T},
            r"superpixels have \(height, width\) \(30, 20\).*\(20, 30\)",
        ),
        ({"superpixels": superpixels() + 0.5}, "whole numbers.*float64"),
        ({"labels": np.ones((4, 3))}, "cell per proposal.*float64"),
        ({"labels": cells([[[1]], [[2, 7]], [[3]], [[4]]], (-1, 1))}, "proposal 1 .*7.* 1 to 31"),
        ({"labels": cells([[[1]], [[2.5]], [[3]], [[4]]], (-1, 1))}, "proposal 1 .*2.5"),
        ({"scores": np.ones((3, 1))}, "4 boxes but 3 scores"),
    ],
)
def test_malformed_superpixels(tmp_path, changes, words):
    write_mcg(tmp_path / f"{IDS[0]}.mat", **changes)
    with pytest.raises(DataError, match=rf"{IDS[0]}\.mat.*{words}"):
        import_proposals(tmp_path, images(IDS[:1]))


def test_superpixels_of_some_images_alone(tmp_path):
    write_mcg(tmp_path / f"{IDS[0]}.mat")
    write_mcg(tmp_path / f"{IDS[1]}.mat", superpixels=None, scores=None)
    with pytest.raises(DataError, match="no masks for 1 of 2 images.*'000007'"):
        import_proposals(tmp_path, images(IDS[:2]))


# -- lists of run-length encodings


def shapes_of(seed, count=3):
    rng = np.random.default_rng(seed)
    found = [np.zeros(SIZE, bool) for _ in range(count)]
    for pixels in found:
        y, x = rng.integers(0, 15), rng.integers(0, 25)
        pixels[y : y + 5, x : x + 5] = rng.random((5, 5)) < 0.8
        pixels[y, x] = True
    return found


def rle(pixels, compressed=True):
    if compressed:
        found = coco_mask.encode(np.asfortranarray(pixels.astype(np.uint8)))
        return found | {"counts": found["counts"].decode()}
    flat = np.append(False, pixels.ravel(order="F"))
    edges = np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]), [pixels.size]])
    return {"size": list(SIZE), "counts": np.diff(edges).tolist()}


def write_json(path, entries):
    path.write_text(json.dumps(entries))
    return path


def entries(ids, key="predicted_iou", compressed=True):
    return [
        {
            "image_id": i,
            "segmentation": rle(pixels, compressed),
            key: 0.25 * k,
            "bbox": [0, 0, 1, 1],
        }
        for seed, i in enumerate(ids)
        for k, pixels in enumerate(shapes_of(seed))
    ]


@pytest.mark.parametrize("key", ["score", "predicted_iou"])
@pytest.mark.parametrize("compressed", [True, False])
def test_results_files(tmp_path, key, compressed):
    path = write_json(tmp_path / "sam.json", entries([12, 5, 99], key, compressed))
    result = import_proposals(path, numbered(IDS[:2], (5, 12)))
    assert_imported(result, {IDS[0]: shapes_of(1), IDS[1]: shapes_of(0)})
    assert result.proposals.get_scores(IDS[0]).tolist() == [0, 0.25, 0.5]
    assert result.unused == 1 and "sam.json" in result.proposals.generator


def test_results_files_by_name_without_scores(tmp_path):
    given = entries([f"{i}.jpg" for i in IDS], "other")
    given.insert(1, {"image_id": f"{IDS[0]}.jpg", "segmentation": rle(np.zeros(SIZE, bool))})
    result = import_proposals(write_json(tmp_path / "sam.json", given), images())
    assert_imported(result, {image_id: shapes_of(seed) for seed, image_id in enumerate(IDS)})
    assert result.proposals.scores is None and result.empty == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"annotations": []}, "holds a dict; needed a list"),
        ([{"image_id": 5}], "entry 0 of .*segmentation"),
        ([{"image_id": 5, "segmentation": [[0, 0, 1, 1, 0, 1]]}], "entry 0 of .*an RLE"),
        ([{"image_id": None, "segmentation": rle(np.ones(SIZE))}], "entry 0 of .*image_id"),
        ([{"image_id": 5, "segmentation": rle(np.ones(SIZE)), "score": None}], "score is None"),
        ([{"image_id": 5, "segmentation": rle(np.ones((30, 20)))}], r"\(30, 20\).*\(20, 30\)"),
        (
            [{"image_id": 5, "segmentation": {"size": SIZE, "counts": [7]}}],
            "mask 0 .*'000005'.*600",
        ),
        ([{"image_id": 5, "segmentation": {"size": SIZE}}], "mask 0 of image '000005'.*counts"),
        ([{"image_id": 6, "segmentation": rle(np.ones(SIZE))}], "no boxes for 1 of the 1 images"),
        ([], "no boxes for 1 of the 1 images.*None"),
    ],
)
def test_malformed_results_files(tmp_path, content, words):
    path = write_json(tmp_path / "sam.json", content)
    with pytest.raises(DataError, match=words):
        import_proposals(path, images(IDS[:1]))


def test_the_command_writes_both_files(tmp_path, capsys):
    write_synthetic(tmp_path / "set", SyntheticSpec(num_trainval=2, num_test=0, size=64))
    pixels = np.zeros((64, 64), bool)
    pixels[3:9, 5:7] = True
    given = [{"image_id": i, "segmentation": rle(pixels)} for i in ("000001", "000002")]
    path = write_json(tmp_path / "sam.json", given)
    out = tmp_path / "p.npz"
    arguments = ["--data", str(tmp_path / "set"), "--split", "trainval", "--out", str(out)]
    arguments += ["--import", str(path)]
    assert make_proposals.main([*arguments, "--num", "5"]) == 0
    assert "p.masks.npz: a mask for each of 2 proposals" in capsys.readouterr().out
    masks = open_masks(tmp_path / "p.masks.npz")
    assert masks.proposals.get("000002").tolist() == [[5, 3, 7, 9]]
    assert [mask.pixels.all() for mask in masks.masks("000002", [0])] == [True]
    with pytest.raises(SystemExit):
        make_proposals.main([*arguments, "--num", "0"])
