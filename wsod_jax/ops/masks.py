"""Masks of objects: pasting them into images, and segmentations as COCO writes them, polygons and run lengths.

A run-length encoding (RLE) is a dict of `size`, [height, width] of the image, and `counts`: the lengths of runs of
background and object in turn, down the columns, as a list of numbers or compressed into a text. pycocotools draws
polygons and encodes; its decoder takes counts that end too soon, and fills the rest of the mask with what memory held
before, so counts are decoded and checked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.types import Mask

_FARTHEST = 2.0**16  # pixels; the outline of a corner at 1e9 would be walked pixel by pixel


def paste_masks(
    masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], *, threshold: float = 0.5
) -> tuple[Mask, ...]:
    """Lay masks that were predicted in the frame of their boxes into the image.

    The center (x, y) of a pixel lies at u = (x - x1) / (x2 - x1) · p - 1/2 and v = (y - y1) / (y2 - y1) · p - 1/2, in
    cells whose centers are the integers 0 .. p - 1. The mask's value there is bilinear between the four nearest
    cells, with zeros around the mask: from the outermost centers to the box's edge it falls to a half.

    Args:
      masks: [n, p, p] float32 probabilities, rows first.
      boxes: [n, 4] `xyxy` pixels, finite; they may reach outside the image.
      size: (height, width) of the image.
      threshold: pixels of value >= this belong to the object.
    Returns:
      n masks whose windows are the pixels that the box touches, clipped to the image. A box without area, or wholly
      outside, has an empty window.
    Cost: a few operations per pixel of the windows; 10 ms for 100 windows of 200 × 200.
    Source: He et al. 2017 (Mask R-CNN), section 3.1; `paste_masks_in_image` of detectron2 samples at the same points.
    """
    masks = np.pad(np.asarray(masks, np.float32), ((0, 0), (1, 1), (1, 1)))  # [n, p + 2, p + 2]
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    height, width = size
    first = np.clip(np.floor(boxes[:, :2]), 0, (width, height)).astype(int)
    last = np.clip(np.ceil(boxes[:, 2:]), first, (width, height)).astype(int)
    last[(boxes[:, 2:] <= boxes[:, :2]).any(axis=1)] = 0
    pasted = []
    for cells, (x1, y1, x2, y2), (left, top), (right, bottom) in zip(
        masks, boxes, first.tolist(), last.tolist(), strict=True
    ):
        if right <= left or bottom <= top:
            pasted.append(Mask(top, left, np.zeros((0, 0), bool)))
            continue
        columns = _resample(cells.T, x1, x2, left, right)  # [w, p + 2]
        values = _resample(np.ascontiguousarray(columns.T), y1, y2, top, bottom)  # [h, w]
        pasted.append(Mask(top, left, values >= threshold))
    return tuple(pasted)


def _resample(cells: np.ndarray, low: float, high: float, first: int, last: int) -> np.ndarray:
    """Interpolate along axis 0 at the pixels first .. last - 1.

    Args:
      cells: [p + 2, n] float32, of which the inner p cover `low` to `high`.
    Returns:
      [last - first, n] float32.
    """
    p = len(cells) - 2
    position = (np.arange(first, last) + 0.5 - low) / (high - low) * p + 0.5
    position = np.clip(position, 0, p + 1)
    below = np.minimum(position.astype(int), p)
    values = np.diff(cells, axis=0)[below]
    values *= (position - below).astype(np.float32)[:, None]
    values += cells[below]
    return values


def tight_box(mask: Mask) -> np.ndarray:
    """Return the smallest box around a mask, [4] float32 `xyxy`; without area for a mask without pixels."""
    rows, columns = (np.flatnonzero(mask.pixels.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return np.array([mask.left, mask.top] * 2, np.float32)
    corners = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    return np.add(corners, [mask.left, mask.top] * 2).astype(np.float32)


def mask_areas(masks: Sequence[dict[str, Any]]) -> np.ndarray:
    """Return the numbers of pixels of RLEs, [n] float64."""
    from pycocotools import mask as coco_mask

    # One by one: pycocotools 2.0.11 fails on lists of more than 255.
    return np.array([coco_mask.area(mask) for mask in masks], np.float64)


def window_of(pixels: np.ndarray) -> Mask:
    """Return an object [H, W] bool as the smallest window that holds it; without any pixel, of side 0."""
    left, top, right, bottom = tight_box(Mask(0, 0, pixels)).astype(int).tolist()
    return Mask(top, left, np.ascontiguousarray(pixels[top:bottom, left:right]))


def mask_to_rle(mask: Mask, size: tuple[int, int]) -> dict[str, Any]:
    """Return a mask as compressed RLE, ready for JSON.

    Args:
      mask: any.
      size: (height, width) of its image.
    Raises:
      DataError: the mask reaches outside the image.
    Cost: 0.5 ms in an image of 1000 × 1000.
    """
    from pycocotools import mask as coco_mask

    bottom, right = np.add((mask.top, mask.left), mask.pixels.shape)
    if mask.top < 0 or mask.left < 0 or bottom > size[0] or right > size[1]:
        raise DataError(
            f"a mask covers rows {mask.top} to {bottom} and columns {mask.left} to {right}; its image has (height, "
            f"width) {tuple(size)}. Give the mask the size of the image that it was made of"
        )
    image = np.zeros(size, np.uint8, order="F")
    image[mask.top : bottom, mask.left : right] = mask.pixels
    rle = coco_mask.encode(image)
    return {"size": [int(side) for side in size], "counts": rle["counts"].decode("ascii")}


def has_mask(segmentation: Any) -> bool:
    """Return whether a segmentation says anything: run lengths, or a polygon of three corners and more."""
    if isinstance(segmentation, list):
        return any(isinstance(polygon, list) and len(polygon) >= 6 for polygon in segmentation)
    return bool(segmentation)


def decode_mask(segmentation: Any, size: tuple[int, int], name: str) -> Mask:
    """Return the mask of a segmentation, cut to its pixels.

    Args:
      segmentation: an RLE, or a list of polygons [x, y, x, y, ...], whose union counts, those of less than three
        corners left out.
      size: (height, width) of the image that the mask belongs to.
      name: what to call it in errors.
    Raises:
      DataError: neither, a polygon that is none, or what `rle_to_mask` refuses.
    """
    if isinstance(segmentation, list):
        return window_of(_from_polygons(segmentation, size, name))
    return rle_to_mask(segmentation, size, name)


def rle_to_mask(rle: Any, size: tuple[int, int], name: str = "a mask") -> Mask:
    """Return the mask of an RLE, cut to its pixels.

    Args:
      rle: `size` and `counts`, compressed (text or bytes) or not (list of numbers).
      size: (height, width) of the image that the mask belongs to.
      name: what to call it in errors.
    Raises:
      DataError: no RLE, one of another size, or one whose runs do not fill the image.
    """
    try:
        height, width = rle["size"]
        runs = _run_lengths(rle["counts"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise DataError(
            f"{name}: found {rle!r:.200}; needed an RLE as pycocotools writes it, a `size` [height, width] and "
            "`counts`. Polygons are turned into one by pycocotools.mask.frPyObjects and merge"
        ) from None
    if (height, width) != tuple(size):
        raise DataError(
            f"{name}: it has (height, width) {(height, width)}, its image {tuple(size)}; masks are needed at the size "
            "of the image as it lies on disk. Resize the mask, or correct the size that the file names"
        )
    if runs.sum() != height * width:
        raise DataError(
            f"{name}: its runs cover {runs.sum()} pixels; its image {tuple(size)} has {height * width}. Was the file "
            "damaged?"
        )
    is_object = np.arange(len(runs)) % 2 == 1
    return window_of(np.repeat(is_object, runs).reshape(width, height).T)


def _from_polygons(polygons: list, size: tuple[int, int], name: str) -> np.ndarray:
    """Return the union [height, width] bool of polygons."""
    from pycocotools import mask as coco_mask

    corners = []
    for polygon in polygons:
        try:
            values = np.array(polygon, np.float64)
        except (TypeError, ValueError):
            values = np.array(np.nan)
        if values.ndim != 1 or values.size % 2 or not (np.abs(values) <= _FARTHEST).all():
            raise DataError(
                f"{name}: {polygon!r:.80} is no polygon; it must be a list [x, y, x, y, ...] of numbers up to "
                f"{_FARTHEST:.0f}"
            )
        if values.size >= 6:
            corners.append(values.tolist())
    if not corners:
        return np.zeros(size, bool)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(corners, *size))).astype(bool)


def _run_lengths(counts: str | bytes | list[int]) -> np.ndarray:
    """Return the lengths of an RLE's runs, [n] int64; raise `ValueError` or `TypeError` where it holds none.

    Each character of compressed counts holds 5 bits, lowest first, and whether more follow; from the fourth run on,
    lengths are differences to the run before the last.
    """
    if isinstance(counts, list):
        lengths = np.array(counts).reshape(-1)
        if len(lengths) and (lengths.dtype.kind != "i" or lengths.min() < 0):
            raise ValueError("not lengths")
        return lengths.astype(np.int64)
    text = counts.encode("ascii") if isinstance(counts, str) else counts
    digits = np.frombuffer(text, np.uint8).astype(np.int64) - 48
    ends = (digits & 32) == 0
    if not len(digits) or not ends[-1] or digits.min() < 0 or digits.max() > 63:
        raise ValueError("not compressed counts")
    start = np.flatnonzero(np.append(True, ends[:-1]))
    length = np.diff(np.append(start, len(digits)))
    if length.max() > 8:
        raise ValueError("a run too long for any image")
    place = np.arange(len(digits)) - np.repeat(start, length)
    lengths = np.add.reduceat((digits & 31) << (5 * place), start)
    lengths -= np.where(digits[ends] & 16, 1 << (5 * length), 0)  # the highest bit is the sign
    for parity in (1, 2):
        lengths[parity::2] = np.cumsum(lengths[parity::2])
    if lengths.min() < 0:
        raise ValueError("not lengths")
    return lengths
