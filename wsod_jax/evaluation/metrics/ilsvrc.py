"""Localization error as in ILSVRC: one class per image, one box per guess."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.average_precision import best_overlaps
from wsod_jax.evaluation.metrics.tables import DetectionTable, GroundTruth

ILSVRC_GUESSES = 5


@dataclass(frozen=True)
class IlsvrcErrors:
    """Shares of images that are wrong; every error is in [0, 1], NaN if no image counts.

    Attributes:
      top: the numbers k of guesses, ascending.
      classification: per k, the label is not among the first k guesses.
      localization: per k, none of the first k guesses has both the label and a box that lies on an object of it.
      num_images: images counted.
      num_left_out: images on the blacklist.
    """

    top: tuple[int, ...]
    classification: tuple[float, ...]
    localization: tuple[float, ...]
    num_images: int
    num_left_out: int


def ranked_classes(image_scores: np.ndarray, k: int = 5) -> np.ndarray:
    """Return the `k` best classes of every image, best first.

    Args:
      image_scores: [n, c] finite, higher is more confident.
      k: guesses; at most c.
    Returns:
      [n, k] int32.
    Raises:
      DataError: scores that are not finite, or fewer classes than guesses.
    Ties: the lower class ranks first.
    """
    image_scores = np.asarray(image_scores)
    if image_scores.ndim != 2 or not 1 <= k <= image_scores.shape[1]:
        raise DataError(
            f"image scores have shape {image_scores.shape}, needed [n, c] with at least {k} classes for {k} guesses"
        )
    if not np.isfinite(image_scores).all():
        raise DataError("image scores are not finite; was every image of the set predicted?")
    return np.argsort(-image_scores, axis=1, kind="stable")[:, :k].astype(np.int32)


def read_blacklist(path: str | Path, image_ids: Sequence[str]) -> list[int]:
    """Return the positions of the images that a blacklist names.

    Args:
      path: a text file, one image per line: its id, or, as in the list that comes with ILSVRC, the number that the
        id ends with ("36" for "ILSVRC2012_val_00000036").
      image_ids: of the set.
    Raises:
      DataError: no such file, or a line that names no image of the set.
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such blacklist")
    places = {image_id: place for place, image_id in enumerate(image_ids)}
    endings = {place: re.search(r"(\d+)$", image_id) for image_id, place in places.items()}
    numbers = {int(number[1]): place for place, number in endings.items() if number}
    found = []
    for line, text in enumerate(path.read_text(encoding="utf-8").split(), start=1):
        place = places.get(text, numbers.get(int(text)) if text.isdecimal() else None)
        if place is None:
            raise DataError(f"{path}: entry {line}, {text!r}, is not an image of the set")
        found.append(place)
    return found


def _counted(num_images: int, blacklist: Sequence[int]) -> np.ndarray:
    """Return [n] bool, False for the images on the blacklist."""
    listed = np.asarray(blacklist, np.int64).reshape(-1)
    wrong = (listed < 0) | (listed >= num_images)
    if wrong.any():
        raise DataError(
            f"blacklist names image {listed[np.argmax(wrong)]}, allowed 0 to {num_images - 1}: positions in "
            "the evaluated set, from 0; the list that comes with ILSVRC counts from 1"
        )
    counted = np.ones(num_images, bool)
    counted[listed] = False
    return counted


def _checked_labels(labels: np.ndarray, truth: GroundTruth) -> np.ndarray:
    """Return the images' classes as [n] int, raising `DataError` where they are none."""
    labels = np.asarray(labels)
    legal = labels.shape == (truth.num_images,)
    if not legal or (labels < 0).any() or (labels >= truth.num_classes).any():
        raise DataError(
            f"labels have shape {labels.shape}, values {labels.min(initial=0)} to {labels.max(initial=0)}; needed: "
            f"the class of each of {truth.num_images} images, 0 to {truth.num_classes - 1}"
        )
    return labels


def _right_boxes(
    classes: np.ndarray, boxes: np.ndarray, truth: GroundTruth, iou_thr: float
) -> np.ndarray:
    """Return [n, k] bool: the box has IoU >= `iou_thr` with an object of its class."""
    two_axes = classes.ndim == 2 and len(classes) == truth.num_images
    if not two_axes or boxes.shape != (*classes.shape, 4):
        raise DataError(
            f"classes have shape {classes.shape}, boxes {boxes.shape}, ground truth {truth.num_images} images; "
            "needed: [n, k] guesses with a box each, for every image of the set"
        )
    found = zip(boxes, np.ones(classes.shape), classes, strict=True)
    table = DetectionTable.from_images(list(found), num_classes=truth.num_classes)
    best_iou, best_row = best_overlaps(table, truth)
    return ((best_iou >= iou_thr) & (best_row >= 0)).reshape(classes.shape)


def _error(right: np.ndarray) -> float:
    """Return the share of False; NaN without an entry."""
    return 1.0 - float(right.mean()) if right.size else float("nan")


def known_class_error(
    boxes: np.ndarray,
    labels: np.ndarray,
    truth: GroundTruth,
    *,
    iou_thr: float = 0.5,
    blacklist: Sequence[int] = (),
) -> float:
    """Return the localization error when the class is given ("GT-known"): only the box can be wrong.

    Args:
      boxes: [n, 4] `xyxy` original pixels, the box of the image's own class; finite. A box without area is wrong.
      labels: [n] int, the image's class.
      truth: objects of these n images.
      iou_thr: right if IoU >= this with any object of the class. An image without such an object is wrong.
      blacklist: positions of images to leave out, from 0: ILSVRC's images of doubtful annotation.
    Returns:
      float in [0, 1]; NaN if no image counts.
    Raises:
      DataError: arrays of another set, classes or positions outside it, or boxes that are not finite.

    Source: Russakovsky et al. 2015, section 4; Zhu et al. 2017 (SPN), section 4.3.
    """
    labels = _checked_labels(labels, truth)
    right = _right_boxes(labels[:, None], np.asarray(boxes)[:, None], truth, iou_thr)
    return _error(right[_counted(truth.num_images, blacklist), 0])


def localization_errors(
    classes: np.ndarray,
    boxes: np.ndarray,
    labels: np.ndarray,
    truth: GroundTruth,
    *,
    top: Sequence[int] = (1, 5),
    iou_thr: float = 0.5,
    blacklist: Sequence[int] = (),
) -> IlsvrcErrors:
    """Return the top-k errors of classification, and of classification and box together.

    Args:
      classes: [n, k] int, the guesses of every image, best first: `ranked_classes`.
      boxes: [n, k, 4] `xyxy` original pixels, the box of every guess; finite. A box without area is wrong.
      labels: [n] int, the image's class.
      truth: objects of these n images.
      top: numbers of guesses to judge, each from 1 to k.
      iou_thr: a box is right if IoU >= this with any object of its class.
      blacklist: positions of images to leave out of both errors, from 0.
    Raises:
      DataError: arrays of another set, classes or positions outside it, too few guesses, or boxes not finite.

    Source: Russakovsky et al. 2015, section 4.
    """
    classes, top = np.asarray(classes), tuple(sorted(top))
    right = _right_boxes(classes, np.asarray(boxes), truth, iou_thr)
    if not top or top[0] < 1 or top[-1] > classes.shape[1]:
        raise DataError(
            f"top is {top}, with {classes.shape[1]} guesses per image; allowed: 1 to {classes.shape[1]}"
        )
    named = classes == _checked_labels(labels, truth)[:, None]
    found = named & right
    counted = _counted(truth.num_images, blacklist)
    return IlsvrcErrors(
        top=top,
        classification=tuple(_error(named[counted, :k].any(axis=1)) for k in top),
        localization=tuple(_error(found[counted, :k].any(axis=1)) for k in top),
        num_images=int(counted.sum()),
        num_left_out=int((~counted).sum()),
    )
