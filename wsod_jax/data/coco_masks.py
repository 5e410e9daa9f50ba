"""Segmentations as COCO writes them: polygons, and run lengths, plain or compressed.

Polygons are drawn by pycocotools. Its decoder of run lengths takes counts that end too soon, and fills the rest of the
mask with what memory held before; here counts are checked before they become pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wsod_jax.errors import DataError

_FARTHEST = 2.0**16  # pixels; the outline of a corner at 1e9 would be walked pixel by pixel


def has_mask(segmentation: Any) -> bool:
    """Return whether a segmentation says anything: run lengths, or a polygon of three corners and more."""
    if isinstance(segmentation, list):
        return any(isinstance(polygon, list) and len(polygon) >= 6 for polygon in segmentation)
    return bool(segmentation)


def decode_mask(segmentation: Any, height: int, width: int, name: str) -> np.ndarray:
    """Return the pixels of a segmentation.

    Args:
      segmentation: a list of polygons [x, y, x, y, ...], whose union counts, those of less than three corners left
        out; or `{"size": [height, width], "counts": ...}` with a list of run lengths, or compressed text.
      height: of the image, in pixels.
      width: likewise.
      name: what to call it in errors.

    Returns:
      [height, width] bool.

    Raises:
      DataError: if it is none of these, or of another size than the image.
    """
    if isinstance(segmentation, list):
        return _from_polygons(segmentation, height, width, name)
    if not isinstance(segmentation, dict) or not {"size", "counts"} <= set(segmentation):
        raise DataError(
            f"{name}: its segmentation is {segmentation!r:.80}; allowed are a list of polygons and run lengths, "
            '{"size": [height, width], "counts": ...}.'
        )
    size, counts = segmentation["size"], segmentation["counts"]
    if size != [height, width]:
        raise DataError(
            f"{name}: its mask is of (height, width) {size}, the image of {[height, width]}; a mask has the size of "
            "its image. Resize the mask, or correct the image's size in the file."
        )
    if isinstance(counts, str | bytes):
        counts = _from_compressed(counts.encode() if isinstance(counts, str) else counts)
    whole = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
    if not whole or sum(counts) != height * width:
        raise DataError(
            f"{name}: its run lengths are not whole numbers that sum to height × width, "
            f"{height * width}; the file is damaged."
        )
    return np.repeat(np.arange(len(counts)) % 2 == 1, counts).reshape(width, height).T


def _from_polygons(polygons: list, height: int, width: int, name: str) -> np.ndarray:
    from pycocotools import mask

    corners = []
    for polygon in polygons:
        try:
            values = np.array(polygon, np.float64)
        except (TypeError, ValueError):
            values = np.array(np.nan)
        if values.ndim != 1 or values.size % 2 or not (np.abs(values) <= _FARTHEST).all():
            raise DataError(
                f"{name}: {polygon!r:.80} is no polygon; it must be a list [x, y, x, y, ...] of numbers up to "
                f"{_FARTHEST:.0f}."
            )
        if values.size >= 6:
            corners.append(values.tolist())
    if not corners:
        return np.zeros((height, width), bool)
    return mask.decode(mask.merge(mask.frPyObjects(corners, height, width))).astype(bool)


def _from_compressed(text: Sequence[int]) -> list[int]:
    """Return run lengths from COCO's text: five bits a character, the lowest first, bit 6 set where more follow.

    From the fourth number on, what is written is the difference to the number before the last.
    """
    counts, value, shift = [], 0, 0
    for byte in text:
        bits = byte - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (bits >> 4 & 1) << shift  # the sign
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value, shift = 0, 0
    return counts
