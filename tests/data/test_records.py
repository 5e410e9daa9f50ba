"""Image sets hold labels only; boxes are objects of their own."""

import dataclasses
import logging

import numpy as np
import pytest
from PIL import Image

from wsod_jax.data.readers.voc import Voc
from wsod_jax.data.records import (
    AnnotatedBoxes,
    BoxAnnotations,
    BoxSet,
    ImageBoxes,
    ImageRecord,
    ImageSet,
)
from wsod_jax.data.training_labels import training_images
from wsod_jax.errors import DataError


def record(image_id, labels, height=4, width=6):
    return ImageRecord(image_id, lambda: b"", height, width, labels)


def image_set(*labels, classes=("cat", "dog")):
    records = tuple(record(f"i{n}", row) for n, row in enumerate(labels))
    return ImageSet("set", classes, records)


def test_no_field_can_hold_a_box():
    names = {field.name for field in dataclasses.fields(ImageRecord)}
    assert names == {"image_id", "source", "height", "width", "labels", "number"}


def test_labels_and_selection():
    images = image_set((1, 0), (0, -1), (0, 0))
    np.testing.assert_array_equal(images.labels, [[1, 0], [0, -1], [0, 0]])
    assert images.labels.dtype == np.int32
    assert images.select([2, 0]).image_ids == ("i2", "i0")
    numbered = ImageSet(
        "set", ("cat",), (ImageRecord("a", lambda: b"", 4, 6, (1,), 7),), {}, (18,), ("b",)
    )
    kept = training_images(numbered).select([0])
    assert (kept.records[0].number, kept.category_ids, kept.missing) == (7, (18,), ("b",))
    assert image_set(classes=()).labels.shape == (0, 0)


def test_label_vectors_are_distinct_in_order_of_appearance():
    shared = (0, 1)
    vectors, which = image_set((1, 0), shared, (1, 0), (-1, 1), shared, tuple([0, 1])).label_vectors
    np.testing.assert_array_equal(vectors, [[1, 0], [0, 1], [-1, 1]])
    np.testing.assert_array_equal(which, [0, 1, 0, 2, 1, 1])
    vectors, which = image_set().label_vectors
    assert vectors.shape == (0, 2) and which.shape == (0,)
    vectors, which = image_set((), (), classes=()).label_vectors
    assert vectors.shape == (1, 0) and which.tolist() == [0, 0]


def test_a_wrong_label_among_shared_ones_is_found():
    right, wrong = (0, 1), (0, 2)
    with pytest.raises(DataError, match="'i2'"):
        image_set(right, right, wrong, wrong)


@pytest.mark.parametrize("labels", [(1,), (1, 0, 0), (1, 2), (1, -2)])
def test_wrong_labels_are_refused(labels):
    with pytest.raises(DataError, match="'i0'"):
        image_set(labels)


def test_an_id_occurs_once():
    with pytest.raises(DataError, match="'a'.*twice"):
        ImageSet("set", ("cat",), (record("a", (1,)), record("a", (0,))))


def test_load_checks_the_size(tmp_path):
    path = tmp_path / "a.png"
    Image.new("RGB", (6, 4), (9, 8, 7)).save(path)
    loaded = ImageRecord("a", path, 4, 6).load()
    assert loaded.shape == (4, 6, 3) and (loaded == [9, 8, 7]).all()
    assert (ImageRecord("a", path.read_bytes, 4, 6).load() == loaded).all()
    with pytest.raises(DataError, match=r"a\.png.*\(4, 6\).*\(4, 7\)"):
        ImageRecord("a", path, 4, 7).load()


def test_ground_truth_selection():
    empty = BoxAnnotations.from_lists([], [], [])
    assert empty.boxes.shape == (0, 4) and empty.classes.shape == (0,)
    truth = AnnotatedBoxes(("cat",), {"a": empty, "b": empty})
    assert list(truth.select(["b"]).boxes) == ["b"]
    with pytest.raises(DataError, match="'c'"):
        truth.select(["a", "c"])


def test_readers_of_labels_and_boxes_return_different_types():
    assert Voc.images.__annotations__["return"] == "ImageSet"
    assert Voc.annotated_boxes.__annotations__["return"] == "AnnotatedBoxes"


# Boxes to train on


def boxes_of(*corners, classes=None, ignore=None, weights=None):
    count = len(corners)
    return ImageBoxes(
        np.array(corners, np.float32).reshape(-1, 4),
        np.zeros(count, np.int32) if classes is None else np.array(classes, np.int32),
        np.zeros(count, bool) if ignore is None else np.array(ignore, bool),
        None if weights is None else np.array(weights, np.float32),
    )


def test_a_box_set_is_no_image_set():
    assert not issubclass(BoxSet, ImageSet) and not issubclass(ImageSet, BoxSet)
    assert set(BoxSet.__mro__) & set(ImageSet.__mro__) == {object}


def test_box_set_selection_and_largest_number_of_boxes():
    made = BoxSet(
        image_set((1, 0), (0, 1), (1, 1)),
        (boxes_of((0, 0, 1, 1)), boxes_of(), boxes_of((0, 0, 2, 2), (1, 1, 2, 2), ignore=(0, 1))),
        "annotations",
    )
    assert len(made) == 3 and made.max_targets == 2
    part = made.select([1, 0])
    assert part.images.image_ids == ("i1", "i0") and part.source == "annotations"
    assert [len(boxes) for boxes in part.boxes] == [0, 1] and part.max_targets == 1
    assert made.select([1]).max_targets == 1  # arrays have a row


@pytest.mark.parametrize(
    ("boxes", "message"),
    [
        (boxes_of((0, 0, 1, np.nan)), "not finite"),
        (boxes_of((3, 0, 1, 1)), "x2.* x1"),
        (boxes_of((0, 0, 1, 1), classes=(2,)), " 0 to 1"),
        (boxes_of((0, 0, 1, 1), classes=(-1,)), " 0 to 1"),
        (boxes_of((0, 0, 1, 1), classes=(0, 1)), r"classes.*\(2,\).* 1 boxes"),
        (boxes_of((0, 0, 1, 1), ignore=()), r"ignore.*\(0,\)"),
        (boxes_of((0, 0, 1, 1), weights=(-0.1,)), "weight.*negative"),
        (boxes_of((0, 0, 1, 1), weights=(np.inf,)), "weight.*finite"),
        (ImageBoxes(np.zeros((1, 5)), np.zeros(1, int), np.zeros(1, bool)), r"shape \(1, 5\)"),
    ],
)
def test_faulty_boxes_name_their_image(boxes, message):
    with pytest.raises(DataError, match=f"'i1'.*{message}"):
        BoxSet(image_set((1, 0), (0, 1)), (boxes_of(), boxes), "annotations")


def test_every_image_has_its_boxes_and_every_set_a_source():
    with pytest.raises(DataError, match="1 images.* 2 images"):
        BoxSet(image_set((1, 0), (0, 1)), (boxes_of(),), "annotations")
    with pytest.raises(DataError, match="boxes"):
        BoxSet(image_set((1, 0)), (boxes_of(),), "")


def test_annotations_become_boxes_to_train_on(caplog):
    two = np.float32([[0, 0, 2, 2], [1, 1, 3, 3], [0, 1, 2, 3]])
    crowd = BoxAnnotations.from_lists(
        two, [1, 0, 1], [True, False, False], crowd=[False, False, True]
    )
    images = image_set((1, 0), (0, 1), (1, 1))
    truth = AnnotatedBoxes(
        ("cat", "dog"), {"i2": crowd, "i0": BoxAnnotations.from_lists([], [], [])}
    )
    with caplog.at_level(logging.WARNING):
        made = BoxSet.from_ground_truth(images, truth)
    assert made.images.image_ids == ("i0", "i2") and made.source == "annotations"
    assert made.images.counts["without_boxes"] == 1 and "1 images" in caplog.text
    np.testing.assert_array_equal(made.boxes[1].boxes, two)
    assert made.boxes[1].classes.tolist() == [1, 0, 1] and made.boxes[1].weights is None
    assert made.boxes[1].ignore.tolist() == [True, False, True]
    assert len(made.boxes[0]) == 0
    with pytest.raises(DataError, match="3 images.*boxes"):
        BoxSet.from_ground_truth(images, AnnotatedBoxes(("cat", "dog"), {}))
    with pytest.raises(DataError, match="class_names"):
        BoxSet.from_ground_truth(images, AnnotatedBoxes(("dog", "cat"), truth.boxes))
