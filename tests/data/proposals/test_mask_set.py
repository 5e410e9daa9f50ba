"""The file of masks of proposals: round trips, decoding on request, and what is refused."""

import numpy as np
import pytest

from tests.data.proposals.test_proposal_set import A, B
from wsod_jax.data.proposals.mask_set import MaskSet, masks_path, open_masks
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.errors import DataError
from wsod_jax.ops.masks import mask_to_rle
from wsod_jax.types import Mask

SIZES = {"a": (20, 30), "empty": (8, 8), "b": (5, 6)}
BOXES = {"a": A, "empty": np.zeros((0, 4)), "b": B}
MASKS = {
    "a": [Mask(0, 0, np.eye(10, dtype=bool)), Mask(5, 5, np.ones((15, 25), bool))],
    "empty": [],
    "b": [Mask(2, 1, np.array([[True, False], [True, True]]))],
}


def make_proposals(sizes=SIZES, boxes=BOXES, scores=None):
    return ProposalSet.from_images(sizes, boxes, scores, generator="by hand", origin="p.npz")


def counts_of(masks=MASKS, sizes=SIZES):
    return {i: [mask_to_rle(m, sizes[i])["counts"].encode() for m in masks[i]] for i in masks}


def save(tmp_path, proposals=None, counts=None):
    """Write both files; return the path of the masks."""
    proposals = proposals or make_proposals()
    proposals.save(tmp_path / "p.npz")
    path = masks_path(tmp_path / "p.npz")
    MaskSet.from_images(proposals, counts or counts_of(), generator="by hand").save(path)
    return path


def change(path, **arrays):
    with np.load(path) as file:
        found = {name: file[name] for name in file.files}
    found |= arrays
    np.savez(path, **{name: array for name, array in found.items() if array is not None})


def test_round_trip(tmp_path):
    path = save(tmp_path)
    assert path == tmp_path / "p.masks.npz"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.masks.npz", "p.npz"]
    loaded = open_masks(path)
    assert len(loaded) == 3 and "3 images, 3 masks, by 'by hand'" in repr(loaded)
    for image_id, expected in MASKS.items():
        rles = loaded.get(image_id)
        assert [rle["counts"] for rle in rles] == counts_of()[image_id]
        assert all(rle["size"] == list(SIZES[image_id]) for rle in rles)
        for found, mask in zip(loaded.masks(image_id, range(len(rles))), expected, strict=True):
            assert (found.top, found.left) == (mask.top, mask.left)
            np.testing.assert_array_equal(found.pixels, mask.pixels)
    [second, first] = loaded.masks("a", [1, 0])
    assert second.pixels.sum() == 375 and first.pixels.sum() == 10
    with pytest.raises(DataError, match="'c'"):
        loaded.get("c")


def test_scores_and_generator_are_free_but_not_boxes_sizes_and_ids():
    proposals = make_proposals()
    scores = {"a": [1, 2], "empty": [], "b": [3]}
    assert make_proposals(scores=scores).checksum == proposals.checksum
    others = [
        make_proposals(boxes=BOXES | {"b": B + 0.25}),
        make_proposals(sizes=SIZES | {"b": (5, 7)}),
        proposals.select(["a", "b"]),
        proposals.select(["b", "empty", "a"]),
        make_proposals(SIZES | {"b": (5, 6)}, BOXES | {"a": A[:1], "empty": A[1:] / 8}),
    ]
    assert len({p.checksum for p in [proposals, *others]}) == 6


@pytest.mark.parametrize(
    ("proposals", "words"),
    [
        (make_proposals(boxes=BOXES | {"b": B + 0.25}), r"other proposals.*checksum 'sha256:"),
        (make_proposals(boxes=BOXES | {"b": A[:0]}), "'b' has 1 masks and 0 boxes"),
        (make_proposals(sizes=SIZES | {"b": (5, 7)}), r"masks of 'b' have size \[5, 6\].*\[5, 7\]"),
        (make_proposals().select(["a", "empty"]), "3 images, they have 2"),
        (make_proposals().select(["a", "b", "empty"]), "'empty' is in the place of 'b'"),
    ],
)
def test_masks_of_other_proposals_are_refused(tmp_path, proposals, words):
    path = save(tmp_path)
    proposals.save(tmp_path / "p.npz")
    with pytest.raises(DataError, match=rf"p\.masks\.npz.*{words}.*--import"):
        open_masks(path)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"counts": None}, r"lacks \['counts'\]; found"),
        ({"version": np.int32(2)}, "version 2; this program reads 1"),
        ({"starts": np.array([0, 9, 3, 1])}, "starts must rise from 0 to"),
        (
            {"starts": np.array([0, 1])},
            r"starts is int64\[2\], must be whole numbers of shape \[4\]",
        ),
        ({"offsets": np.array([0, 2, 2, 3, 3])}, r"other proposals.*offsets are int64\[5\]"),
        ({"sizes": np.ones((2, 2), int)}, r"other proposals.*size \[1, 1\]"),
        ({"counts": np.array(["x"])}, "cannot be read|counts is"),
    ],
)
def test_malformed_files(tmp_path, arrays, words):
    path = save(tmp_path)
    change(path, **arrays)
    with pytest.raises(DataError, match=words):
        open_masks(path)


def test_damaged_masks_are_named_when_they_are_decoded(tmp_path):
    path = save(tmp_path, counts=counts_of() | {"b": [b"\x01\x7f"]})
    loaded = open_masks(path)
    assert len(loaded.masks("a", [0, 1])) == 2
    with pytest.raises(DataError, match=r"p\.masks\.npz: mask 0 of image 'b': found"):
        loaded.masks("b", [0])
    short = counts_of(sizes=SIZES | {"b": (5, 5)})
    path = save(tmp_path, counts=counts_of() | {"b": short["b"]})
    with pytest.raises(DataError, match="mask 0 of image 'b'.*25 pixels.*30.*damaged"):
        open_masks(path).masks("b", [0])


def test_what_is_no_file_of_masks(tmp_path):
    path = save(tmp_path)
    with pytest.raises(DataError, match=r"p\.npz.*ends in \.masks\.npz.*voc07\.masks\.npz"):
        open_masks(tmp_path / "p.npz")
    with pytest.raises(DataError, match=r"p\.npz is not a file of masks: it lacks"):
        MaskSet.load(tmp_path / "p.npz", make_proposals())
    (tmp_path / "p.npz").rename(tmp_path / "q.npz")
    with pytest.raises(DataError, match=r"p\.npz: no such proposals file"):
        open_masks(path)
    with pytest.raises(DataError, match=r"q\.masks\.npz: no such file of masks.*--import"):
        open_masks(tmp_path / "q.masks.npz")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match="cannot be read"):
        MaskSet.load(path, make_proposals())


def test_an_image_with_another_number_of_masks_than_boxes():
    with pytest.raises(DataError, match="'a' has 2 boxes but 1 masks"):
        MaskSet.from_images(make_proposals(), counts_of() | {"a": [b"1"]}, generator="x")
