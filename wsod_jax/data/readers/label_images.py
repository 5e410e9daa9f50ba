"""Label images: a number per pixel, as VOC and SBD annotate objects and classes. 255 is void."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from wsod_jax.data.images import BROKEN, image_size
from wsod_jax.errors import DataError

VOID = 255


def read_indices(path: Path) -> np.ndarray:
    """Return the numbers of a PNG, [H, W] uint8: the indices of a palette, or the values of gray pixels.

    Raises:
      DataError: if the file is missing or broken, or has colors without a palette.
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ("P", "L"):
                raise DataError(
                    f"{path}: is of mode {image.mode}; a label image has a palette (P) or 8-bit gray pixels (L)."
                )
            return np.array(image)
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: no such file; this image has no annotated pixels. Use a split in which all images have them, "
            'such as VOC\'s "Segmentation/val".'
        ) from error
    except BROKEN as error:
        raise DataError(f"{path}: not a readable label image ({error}).") from error


def check_size(indices: np.ndarray, path: Path, image: Path) -> None:
    """Check that a label image has the size of its image, if that can be read.

    Raises:
      DataError: if the sizes differ.
    """
    try:
        expected = image_size(image)
    except DataError:  # the objects of an unreadable image count as missed
        return
    if indices.shape != expected:
        raise DataError(
            f"{path}: has (height, width) {indices.shape}, its image {image} {expected}; they must agree. "
            "Resize the label image without interpolation."
        )


def to_labels(indices: np.ndarray, table: np.ndarray, path: Path) -> np.ndarray:
    """Convert a file's class numbers to a label map.

    Args:
      indices: [H, W] uint8.
      table: [256] int, number -> 0 background, class + 1, 255 void; -1 for an invalid number.
      path: of the file, for errors.

    Returns:
      [H, W] uint8.

    Raises:
      DataError: for an invalid number.
    """
    labels = table[indices]
    if labels.min(initial=0) < 0:
        unknown = int(indices[labels < 0][0])
        allowed = np.flatnonzero(table >= 0)
        raise DataError(
            f"{path}: has pixels of class number {unknown}; allowed are {', '.join(map(str, allowed))} (0: "
            "background, 255: void, others: classes)."
        )
    return labels.astype(np.uint8)


def majority_classes(indices: np.ndarray, labels: np.ndarray, path: Path) -> dict[int, int]:
    """Return the class of each object: that of most of its pixels; of equal counts the lowest class.

    Args:
      indices: [H, W] uint8, 0 background, 255 void, else the number of an object.
      labels: [H, W] uint8, a label map; background and void are ignored.
      path: of the file of objects, for errors.

    Returns:
      Number -> class, 0-based.

    Raises:
      DataError: if no pixel of an object has a class.
    """
    if indices.shape != labels.shape:
        raise DataError(
            f"{path}: has (height, width) {indices.shape}, the label map of its image {labels.shape}; they must "
            "agree."
        )
    votes = np.zeros((256, 256), np.int64)
    np.add.at(votes, (indices.ravel(), labels.ravel()), 1)
    numbers = [n for n in np.flatnonzero(votes.sum(axis=1)).tolist() if n not in (0, VOID)]
    votes = votes[:, 1:VOID]
    without = [number for number in numbers if not votes[number].any()]
    if without:
        raise DataError(
            f"{path}: no pixel of object {without[0]} has a class in the label map; one of the two files is wrong."
        )
    return {number: int(votes[number].argmax()) for number in numbers}
