"""Checks of the labels for training: images with labels to learn from, classes that can be learned."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np

from wsod_jax.data.records import ImageSet
from wsod_jax.errors import DataError

logger = logging.getLogger(__name__)


def training_images(image_set: ImageSet, *, uses_negatives: bool = False) -> ImageSet:
    """Drop the images without useful labels, and warn of classes that cannot be learned.

    Multiple-instance learning needs images without a class to separate its objects from background; a class that no
    image contains is never predicted.

    Args:
      image_set: any labeled set.
      uses_negatives: whether the method learns from images without any of the classes.

    Returns:
      The images with a label 1 or, with `uses_negatives`, 0; `counts["no_positive_label"]` is the number of the others.

    Raises:
      DataError: if no image has a label 1.
    """
    vectors, which = image_set.label_vectors
    present = vectors == 1
    used = (vectors >= 0 if uses_negatives else present).any(axis=1)
    keep = np.flatnonzero(used[which])
    dropped = len(image_set) - len(keep)
    if not present.any():
        raise DataError(
            f"{image_set.name}: none of its {len(image_set)} images has a positive label; "
            "training needs at least one class present per image."
        )
    if dropped:
        logger.warning("%s: left out %d images without a positive label", image_set.name, dropped)
    kept = present[used]
    advice = "Add images without it" + ("." if uses_negatives else " that show another class.")
    for index, class_name in enumerate(image_set.class_names):
        if not kept[:, index].any():
            logger.warning("%s: no image contains class %r", image_set.name, class_name)
        elif kept[:, index].all():
            logger.warning(
                "%s: every image contains class %r: no MIL signal, its boxes will be arbitrary. %s",
                image_set.name,
                class_name,
                advice,
            )
    selected = image_set.select(keep)
    counts = {**image_set.counts, "no_positive_label": dropped}
    return dataclasses.replace(selected, counts=counts)


def is_single_label(image_set: ImageSet) -> bool:
    """Return whether every image shows exactly one class; unknown labels (-1) count as absent."""
    return bool(((image_set.label_vectors[0] == 1).sum(axis=1) == 1).all())


def check_single_label(image_set: ImageSet) -> None:
    """Check that every image shows exactly one class, as a softmax over the classes assumes.

    Args:
      image_set: any labeled set; unknown labels (-1) count as absent.

    Raises:
      DataError: otherwise, naming the first image that does not, and its classes.
    """
    vectors, which = image_set.label_vectors
    wrong = np.flatnonzero((vectors == 1).sum(axis=1)[which] != 1)
    if not len(wrong):
        return
    record = image_set.records[wrong[0]]
    shown = [
        name for name, label in zip(image_set.class_names, record.labels, strict=True) if label == 1
    ]
    raise DataError(
        f"{image_set.name}: softmax learns one class per image, but {len(wrong)} of {len(image_set)} images do "
        f"not show exactly one; the first is {record.image_id!r}, with {', '.join(shown) or 'none'}. Set "
        "config.method.activation='sigmoid', which learns any number, or remove those images."
    )
