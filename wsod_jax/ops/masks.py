"""Masks of objects: made of boxes, maps and superpixels, and COCO's segmentations, polygons and run lengths.

A run-length encoding (RLE) is a dict of `size`, [height, width] of the image, and `counts`: the lengths of alternating
runs of background and object, down the columns, as a list of numbers or a compressed string. pycocotools draws polygons
and encodes; its decoder accepts counts that end too soon and fills the rest of the mask from uninitialized memory, so
counts are decoded and checked here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.types import Mask

_MAX_COORDINATE = 2.0**16  # pixels; pycocotools traces outlines pixel by pixel


def paste_masks(
    masks: np.ndarray, boxes: np.ndarray, size: tuple[int, int], *, threshold: float = 0.5
) -> tuple[Mask, ...]:
    """Paste masks predicted in the frame of their boxes into the image.

    The center (x, y) of a pixel is at u = (x - x1) / (x2 - x1) · p - 1/2 and v = (y - y1) / (y2 - y1) · p - 1/2, in
    cells whose centers are the integers 0 .. p - 1. The mask is interpolated there bilinearly, with zeros around it:
    from the outermost centers to the box's edge its value falls to a half.

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


def cut_masks(
    class_maps: np.ndarray,
    scale: float,
    boxes: np.ndarray,
    classes: np.ndarray,
    size: tuple[int, int],
    *,
    threshold: float = 0.5,
) -> tuple[Mask, ...]:
    """Cut the masks of boxes out of the maps of their classes.

    Args:
      class_maps: [h, w, c] probabilities, or [0, 255] as uint8, at the centers of cells of 1 / `scale` pixels.
      scale: cells per pixel of the image.
      boxes: [n, 4] `xyxy` pixels.
      classes: [n] of the boxes.
      size: (height, width) of the image.
      threshold: pixels of probability >= this belong to the object.
    Returns:
      n masks of the pixels whose centers lie in the box, and whose map, interpolated bilinearly, reaches the
      threshold. The window of a box that holds no pixel's center is empty.
    """
    if class_maps.dtype == np.uint8:
        threshold = threshold * 255
    first, last = _centers_within(boxes, size)
    cut = []
    for index, (left, top), (right, bottom) in zip(
        classes.tolist(), first.tolist(), last.tolist(), strict=True
    ):
        values = class_maps[..., index].astype(np.float32)
        for axis, (low, high) in enumerate(((top, bottom), (left, right))):
            place = (np.arange(low, high) + 0.5) * scale - 0.5
            place = np.clip(place, 0, values.shape[axis] - 1)
            below = np.minimum(place.astype(int), max(values.shape[axis] - 2, 0))
            above = np.minimum(below + 1, values.shape[axis] - 1)
            part = (place - below).astype(np.float32)
            part = part[:, None] if axis == 0 else part[None, :]
            under, over = (np.take(values, at, axis=axis) for at in (below, above))
            values = under + (over - under) * part
        cut.append(Mask(top, left, values >= threshold))
    return tuple(cut)


def fill_boxes(boxes: np.ndarray, size: tuple[int, int]) -> tuple[Mask, ...]:
    """Return the masks of whole boxes.

    Args:
      boxes: [n, 4] `xyxy` pixels, finite; they may reach outside the image.
      size: (height, width) of the image.
    Returns:
      n masks of the pixels whose centers lie in the box, left and upper edge included. The window of a box that holds
      no pixel's center is empty.
    Source: Shen et al. 2019 (WS-JDS), Tab. 5, BB.
    """
    first, last = _centers_within(np.asarray(boxes, np.float64).reshape(-1, 4), size)
    return tuple(
        Mask(top, left, np.ones((bottom - top, right - left), bool))
        for (left, top), (right, bottom) in zip(first.tolist(), last.tolist(), strict=True)
    )


def fill_ellipses(boxes: np.ndarray, size: tuple[int, int]) -> tuple[Mask, ...]:
    """Return the masks of the largest ellipses inside boxes.

    The ellipse touches the box in the middle of its edges; a pixel belongs to it if its center (x, y) has
    ((x - cx) / a)² + ((y - cy) / b)² <= 1, where (cx, cy) is the center of the box, 2a its width and 2b its height.

    Args:
      boxes: [n, 4] `xyxy` pixels, finite. Where one reaches outside the image, so does its ellipse, and is cut off.
      size: (height, width) of the image.
    Returns:
      n masks with the windows of `fill_boxes`.
    Source: Shen et al. 2019 (WS-JDS), Tab. 5, ELL.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    ellipses = []
    for (x1, y1, x2, y2), mask in zip(boxes.tolist(), fill_boxes(boxes, size), strict=True):
        rows, columns = mask.pixels.shape
        if mask.pixels.size:
            y = (mask.top + np.arange(rows) + 0.5 - (y1 + y2) / 2) / ((y2 - y1) / 2)
            x = (mask.left + np.arange(columns) + 0.5 - (x1 + x2) / 2) / ((x2 - x1) / 2)
            mask = mask._replace(pixels=y[:, None] ** 2 + x[None, :] ** 2 <= 1)
        ellipses.append(mask)
    return tuple(ellipses)


def _centers_within(boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the first column and row, and those after the last, [n, 2] int each, of pixels with centers in boxes.

    A box that holds no center, be it only along one side, has none of either.
    """
    height, width = size
    first = np.clip(np.ceil(boxes[:, :2] - 0.5), 0, (width, height)).astype(int)
    last = np.clip(np.ceil(boxes[:, 2:] - 0.5), first, (width, height)).astype(int)
    return first, last


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
    """Crop an object's [H, W] bool to the smallest window around it; of side 0 if there is no pixel."""
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
            f"a mask covers rows {mask.top} to {bottom} and columns {mask.left} to {right}, but its image has (height, "
            f"width) {tuple(size)}; pass the size of the image that the mask was made for"
        )
    image = np.zeros(size, np.uint8, order="F")
    image[mask.top : bottom, mask.left : right] = mask.pixels
    rle = coco_mask.encode(image)
    return {"size": [int(side) for side in size], "counts": rle["counts"].decode("ascii")}


def superpixel_rles(
    superpixels: np.ndarray, members: Sequence[np.ndarray], size: tuple[int, int]
) -> list[dict[str, Any]]:
    """Return regions made of superpixels as compressed RLEs.

    Args:
      superpixels: [H, W] int, the number of the superpixel of every pixel; 0 or more.
      members: of each of n regions the numbers of its superpixels, [k] int; some may occur nowhere.
      size: (height, width) of the image.
    Returns:
      n RLEs, `counts` as bytes.
    Cost: grows with the runs of the map along its columns, not with its pixels.
    """
    from pycocotools import mask as coco_mask

    flat = superpixels.ravel(order="F")
    starts = np.flatnonzero(np.append(True, flat[1:] != flat[:-1]))  # of the map's runs
    numbers = flat[starts]
    rles = []
    for chosen in members:
        is_chosen = np.zeros(max(int(flat.max()), int(chosen.max(initial=0))) + 1, bool)
        is_chosen[chosen] = True
        inside = is_chosen[numbers]
        changes = np.flatnonzero(np.diff(np.append(False, inside)))
        edges = np.concatenate([[0], starts[changes], [flat.size]])
        counts = np.diff(edges).tolist()
        rles.append(coco_mask.frPyObjects({"size": list(size), "counts": counts}, *size))
    return rles


def has_mask(segmentation: Any) -> bool:
    """Return whether a segmentation has run lengths, or a polygon of at least three corners."""
    if isinstance(segmentation, list):
        return any(isinstance(polygon, list) and len(polygon) >= 6 for polygon in segmentation)
    return bool(segmentation)


def decode_mask(segmentation: Any, size: tuple[int, int], name: str) -> Mask:
    """Return the mask of a segmentation, cropped to its pixels.

    Args:
      segmentation: an RLE, or a list of polygons [x, y, x, y, ...], whose union is taken; polygons of fewer than three
        corners are ignored.
      size: (height, width) of the image that the mask belongs to.
      name: of the segmentation, for errors.
    Raises:
      DataError: neither of the two, or an invalid polygon or RLE.
    """
    if isinstance(segmentation, list):
        return window_of(_from_polygons(segmentation, size, name))
    return rle_to_mask(segmentation, size, name)


def rle_to_mask(rle: Any, size: tuple[int, int], name: str = "a mask") -> Mask:
    """Return the mask of an RLE, cropped to its pixels.

    Args:
      rle: `size` and `counts`, compressed (text or bytes) or not (list of numbers).
      size: (height, width) of the image that the mask belongs to.
      name: of the mask, for errors.
    Raises:
      DataError: not an RLE, one of another size, or one whose runs do not add up to the image.
    """
    try:
        height, width = rle["size"]
        runs = _run_lengths(rle["counts"])
    except (KeyError, TypeError, ValueError, OverflowError):
        raise DataError(
            f"{name}: found {rle!r:.200}; needed an RLE as pycocotools writes it, with `size` [height, width] and "
            "`counts`. Polygons are converted to RLE by pycocotools.mask.frPyObjects and merge"
        ) from None
    if (height, width) != tuple(size):
        raise DataError(
            f"{name}: the mask has (height, width) {(height, width)}, its image {tuple(size)}; masks must have the "
            "size of the image file. Resize the mask, or correct the size in the file"
        )
    if runs.sum() != height * width:
        raise DataError(
            f"{name}: its runs cover {runs.sum()} pixels; its image {tuple(size)} has {height * width}. Is the "
            "file damaged?"
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
        if values.ndim != 1 or values.size % 2 or not (np.abs(values) <= _MAX_COORDINATE).all():
            raise DataError(
                f"{name}: {polygon!r:.80} is not a polygon; needed a list [x, y, x, y, ...] of numbers up to "
                f"{_MAX_COORDINATE:.0f}"
            )
        if values.size >= 6:
            corners.append(values.tolist())
    if not corners:
        return np.zeros(size, bool)
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(corners, *size))).astype(bool)


def _run_lengths(counts: str | bytes | list[int]) -> np.ndarray:
    """Return the lengths of an RLE's runs, [n] int64; raise `ValueError` or `TypeError` for malformed counts.

    Each character of compressed counts has 5 bits, lowest first, and a flag whether more follow; from the fourth run
    on, lengths are differences from the run before the last.
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
