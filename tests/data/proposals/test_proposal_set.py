"""The proposals file: round trips, lookups, merging, and what is refused."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from wsod_jax.data.proposals.proposal_set import ProposalSet, check_proposals
from wsod_jax.data.proposals.recall import measure_recall, recall_by_count
from wsod_jax.data.records import AnnotatedBoxes, BoxAnnotations, ImageRecord, ImageSet
from wsod_jax.errors import DataError

A = np.array([[0, 0, 10, 20], [5, 5, 30, 20]], np.float32)
B = np.array([[1.5, 2.25, 3, 4]], np.float32)


def make(scores=True):
    return ProposalSet.from_images(
        {"a": (20, 30), "empty": (8, 8), "b": (5, 6)},
        {"a": A, "b": B, "empty": np.zeros((0, 4))},
        {"a": [0.5, 0.25], "b": [1.0], "empty": []} if scores else None,
        generator="by hand",
    )


def image_set(*sizes):
    records = tuple(ImageRecord(i, Path(f"{i}.jpg"), h, w) for i, h, w in sizes)
    return ImageSet("images", (), records)


@pytest.mark.parametrize("scores", [True, False])
def test_save_and_load_keep_everything(tmp_path, scores):
    proposals = make(scores)
    path = tmp_path / "deep" / "p.npz"
    proposals.save(path)
    loaded = ProposalSet.load(path)
    assert loaded.ids == ("a", "empty", "b") and len(loaded) == 3
    np.testing.assert_array_equal(loaded.get("a"), A)
    np.testing.assert_array_equal(loaded.get("b"), B)
    assert loaded.get("empty").shape == (0, 4)
    assert loaded.get("a").dtype == np.float32
    assert loaded.size("a") == (20, 30)
    assert loaded.generator == "by hand" and loaded.origin == str(path)
    assert "b" in loaded and "c" not in loaded
    assert loaded.max_count == 2 and loaded.counts.tolist() == [2, 0, 1]
    if scores:
        np.testing.assert_array_equal(loaded.get_scores("a"), np.float32([0.5, 0.25]))
    else:
        assert loaded.get_scores("a") is None
    assert [p.name for p in path.parent.iterdir()] == ["p.npz"]  # no partial file is left


def test_unknown_image_names_image_file_and_remedy():
    with pytest.raises(DataError, match=r"'c'.*make_proposals"):
        make().get("c")


def test_select_and_merge_are_inverse():
    whole = make()
    merged = ProposalSet.merge([whole.select(["b"]), whole.select(["a", "empty"])])
    assert merged.ids == ("b", "a", "empty")
    for image_id in whole.ids:
        np.testing.assert_array_equal(merged.get(image_id), whole.get(image_id))
        np.testing.assert_array_equal(merged.get_scores(image_id), whole.get_scores(image_id))
        assert merged.size(image_id) == whole.size(image_id)
    assert merged.generator == "by hand"


def test_merge_refuses_a_repeated_image_and_mixed_scores():
    with pytest.raises(DataError, match="'a'.*twice"):
        ProposalSet.merge([make(), make().select(["a"])])
    with pytest.raises(DataError, match="scores"):
        ProposalSet.merge([make().select(["a"]), make(scores=False).select(["b"])])
    with pytest.raises(DataError, match="no proposal sets"):
        ProposalSet.merge([])


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ([0, 0, np.nan, 5], "finite"),
        ([0, 0, np.inf, 5], "finite"),
        ([3, 0, 3, 5], "area"),
        ([3, 4, 2, 5], "area"),
        ([-0.5, 0, 3, 5], "image"),
        ([0, 0, 3, 20.1], "image"),
        ([0, 0, 30.1, 5], "image"),
    ],
)
def test_bad_boxes_are_refused_by_image(box, message):
    with pytest.raises(DataError, match=rf"'a' \(30×20 .*{message}"):
        ProposalSet.from_images({"a": (20, 30)}, {"a": [A[0], box]}, generator="g")


def test_a_box_may_end_at_the_edge():
    proposals = ProposalSet.from_images({"a": (20, 30)}, {"a": [[0, 0, 30, 20]]}, generator="g")
    assert proposals.get("a").tolist() == [[0, 0, 30, 20]]


def test_lost_boxes_and_scores_are_refused():
    with pytest.raises(DataError, match="no boxes.*'b'"):
        ProposalSet.from_images({"a": (20, 30), "b": (5, 6)}, {"a": A}, generator="g")
    with pytest.raises(DataError, match="'a' .*2 boxes.* 1 scores"):
        ProposalSet.from_images({"a": (20, 30)}, {"a": A}, {"a": [1]}, generator="g")
    with pytest.raises(DataError, match="score.*finite"):
        ProposalSet.from_images({"a": (20, 30)}, {"a": A}, {"a": [1, np.nan]}, generator="g")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("version", np.int32(2), "version 2.* 1"),
        ("version", np.array("1"), "version '1'"),
        ("boxes", np.zeros((3, 5), np.float32), r"boxes is float32\[3, 5\]"),
        ("boxes", np.zeros((3, 4), np.int32), "boxes.*int32.*float"),
        ("scores", np.zeros(2, np.float32), r"scores is float32\[2\]"),
        ("sizes", np.zeros((2, 2), np.int32), r"sizes is int32\[2, 2\]"),
        ("offsets", np.array([0, 2, 1, 3]), "offsets.* 0 to 3"),
        ("offsets", np.array([0, 2, 2, 4]), "offsets.* 0 to 3"),
        ("offsets", np.array([0, 3]), "offsets is int64"),
        ("ids", np.array(["a", "a", "b"]), "'a'.*twice"),
        ("ids", np.arange(3), "ids .*strings"),
        ("generator", None, r"lacks \['generator'\]"),
    ],
)
def test_malformed_files_are_refused(tmp_path, key, value, message):
    path = tmp_path / "p.npz"
    make().save(path)
    arrays = dict(np.load(path))
    arrays.pop(key)
    if value is not None:
        arrays[key] = value
    np.savez(path, **arrays)
    with pytest.raises(DataError, match=message):
        ProposalSet.load(path)


def test_files_that_are_no_npz_are_refused(tmp_path):
    with pytest.raises(DataError, match="none.npz.*make_proposals"):
        ProposalSet.load(tmp_path / "none.npz")
    path = tmp_path / "p.npz"
    make().save(path)
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[: len(whole) // 2]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"p\.npz.*cannot be read"):
            ProposalSet.load(path)
    np.savez(path, version=1, ids=np.array(["a", None], object))  # needs unpickling
    with pytest.raises(DataError, match=r"p\.npz.*cannot be read"):
        ProposalSet.load(path)


def test_a_failed_save_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "p.npz"
    make().save(path)
    before = path.read_bytes()

    def full(file, **arrays):
        file.write(b"partial")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match="No space left"):
        make(scores=False).save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_check_proposals_finds_missing_and_foreign_images():
    proposals = make()
    assert check_proposals(proposals, image_set(("b", 5, 6), ("empty", 8, 8))) == 1
    with pytest.raises(DataError, match="1 of the 2 .*'c'"):
        check_proposals(proposals, image_set(("a", 20, 30), ("c", 1, 1)))
    with pytest.raises(DataError, match=r"\(20, 30\).*\(30, 20\)"):
        check_proposals(proposals, image_set(("a", 30, 20)))


def test_recall_counts_at_the_threshold_and_leaves_out_difficult_objects():
    objects = {
        "a": BoxAnnotations.from_lists(
            [[0, 0, 10, 20], [0, 0, 10, 10], [20, 0, 30, 3]], [0, 0, 1], [0, 0, 1]
        ),
        "empty": BoxAnnotations.from_lists([[0, 0, 4, 4]], [1], [0]),
        "not proposed": BoxAnnotations.from_lists([[0, 0, 4, 4]], [1], [0]),
    }
    report = measure_recall(make(), AnnotatedBoxes(("x", "y"), objects))
    assert report.recall(0.5, 0) == 1.0  # the second object's best IoU is exactly 0.5
    assert report.recall(0.51, 0) == 0.5
    assert report.average_best_overlap(0) == 0.75
    assert report.recall(0.5, 1) == 0.0
    assert report.recall(0.5) == pytest.approx(2 / 3)
    assert report.mean_count == 1.0 and report.num_images == 2
    assert "recall@0.7" in report.table()
    assert "1 annotated images have no proposals" in report.table()


def test_recall_of_the_best_or_first_proposals():
    truth = AnnotatedBoxes(
        ("x",), {"a": BoxAnnotations.from_lists(A.tolist(), [0, 0], [False] * 2)}
    )
    scored = ProposalSet.from_images(
        {"a": (20, 30)}, {"a": A}, {"a": [0.25, 0.5]}, generator="by hand"
    )
    ties = dataclasses.replace(scored, scores=np.zeros(2, np.float32))
    plain = dataclasses.replace(scored, scores=None)
    for proposals, best in ((scored, 1), (ties, 0), (plain, 0)):
        report = measure_recall(proposals, truth, 1)
        assert report.mean_count == 1.0
        assert [value == 1.0 for value in report.best_iou[0]] == [best == 0, best == 1]
        for count in (2, 3, None):
            assert measure_recall(proposals, truth, count).recall(1.0) == 1.0
    assert measure_recall(scored, truth, 0).average_best_overlap() == 0.0

    rows = recall_by_count({"scored": scored, "plain": plain}, truth, (1, 2, 5)).splitlines()[1:]
    assert [row.split()[:4] for row in rows] == [
        ["scored", "1", "1", "50.0%"],
        ["scored", "all", "2", "100.0%"],
        ["plain", "1", "1", "50.0%"],
        ["plain", "all", "2", "100.0%"],
    ]


def test_recall_of_nothing_is_undefined_not_an_error():
    report = measure_recall(make(), AnnotatedBoxes(("x",), {}))
    assert np.isnan(report.recall(0.5)) and np.isnan(report.average_best_overlap(0))
    assert dataclasses.asdict(report)["num_images"] == 0
