"""Training drops images that teach nothing, and warns of classes that cannot be learned."""

import logging

import pytest

from tests.data.test_records import image_set
from wsod_jax.data.training_labels import check_single_label, is_single_label, training_images
from wsod_jax.errors import DataError


def test_images_of_no_class_are_kept_where_they_teach_something(caplog):
    images = image_set((1,), (0,), (-1,), (0,), classes=("cat",))
    with caplog.at_level(logging.WARNING):
        kept = training_images(images, uses_negatives=True)
    assert kept.image_ids == ("i0", "i1", "i3") and kept.counts["no_positive_label"] == 1
    assert "every image contains" not in caplog.text
    with caplog.at_level(logging.WARNING):
        assert training_images(images).image_ids == ("i0",)
    assert "Add images without it that show another class." in caplog.text


def test_training_drops_images_without_positive_and_warns(caplog):
    images = image_set((1, 0, 0), (0, 0, 0), (1, 1, -1), (0, -1, 0), classes=("cat", "dog", "cow"))
    with caplog.at_level(logging.WARNING):
        kept = training_images(images)
    assert kept.image_ids == ("i0", "i2")
    assert kept.counts["no_positive_label"] == 2
    text = caplog.text
    assert "2 images" in text
    assert "every image contains class 'cat'" in text
    assert "no image contains class 'cow'" in text
    assert "'dog'" not in text


def test_training_is_silent_about_a_sound_set(caplog):
    with caplog.at_level(logging.WARNING):
        assert len(training_images(image_set((1, 0), (0, 1)))) == 2
    assert not caplog.records


def test_training_without_any_positive_is_an_error():
    with pytest.raises(DataError, match=" 2 images"):
        training_images(image_set((0, 0), (-1, 0)))


def test_images_of_one_class_each_suit_softmax():
    images = image_set((1, 0), (0, 1), (1, -1))
    check_single_label(images)
    assert is_single_label(images)


@pytest.mark.parametrize(
    ("labels", "message"),
    [((1, 1), "1 of 4 .*'i2'.*cat, dog"), ((0, -1), "'i2'.*none")],
)
def test_other_images_do_not_suit_softmax(labels, message):
    images = image_set((1, 0), (0, 1), labels, (1, 0))
    assert not is_single_label(images)
    with pytest.raises(DataError, match=f"softmax.*{message}.*'sigmoid'"):
        check_single_label(images)
