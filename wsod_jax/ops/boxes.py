"""Geometry of boxes: `xyxy`, absolute pixels, continuous edges (width = x2 - x1).

Functions take NumPy arrays and return NumPy, or take `jax.Array`s and return `jax.Array`s; `box_coverage` and
`union_area` are NumPy only.
"""

from __future__ import annotations

import math
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float

CODE_WEIGHTS = (10.0, 10.0, 5.0, 5.0)  # of Fast R-CNN's deltas
MAX_LOG_GROWTH = math.log(1000 / 16)  # a side grows at most by this factor
MIN_SIDE = 0.01  # pixels; shorter sides count as this long


def _namespace(*arrays: object) -> ModuleType:
    """Return `jax.numpy` if any of the arrays lives in JAX, else `numpy`."""
    return jnp if any(isinstance(x, jax.Array) for x in arrays) else np


def box_area(boxes: Float[Array | np.ndarray, "*n 4"]) -> Float[Array | np.ndarray, "*n"]:
    """Return the area of each box, `max(x2 - x1, 0) * max(y2 - y1, 0)`.

    Args:
      boxes: [..., 4] xyxy in pixels. Inverted boxes are legal and have area 0.

    Returns:
      [...] areas in square pixels.
    """
    xp = _namespace(boxes)
    width = xp.maximum(boxes[..., 2] - boxes[..., 0], 0)
    height = xp.maximum(boxes[..., 3] - boxes[..., 1], 0)
    return width * height


def pairwise_iou(
    a: Float[Array | np.ndarray, "n 4"], b: Float[Array | np.ndarray, "m 4"]
) -> Float[Array | np.ndarray, "n m"]:
    """Return the intersection over union of every box of `a` with every box of `b`.

    Args:
      a: [n, 4] xyxy in pixels.
      b: [m, 4] xyxy in pixels.

    Returns:
      [n, m] in [0, 1]; 0 where the union is empty, so a box without area has IoU 0 even with itself.
      Values are in the boxes' own precision, and in float32 for half-precision boxes.

    Gradient: finite everywhere.   Cost: O(n m) memory.
    """
    xp = _namespace(a, b)
    if a.dtype.itemsize < 4 or b.dtype.itemsize < 4:
        a, b = a.astype(xp.float32), b.astype(xp.float32)
    width = xp.minimum(a[:, None, 2], b[None, :, 2]) - xp.maximum(a[:, None, 0], b[None, :, 0])
    height = xp.minimum(a[:, None, 3], b[None, :, 3]) - xp.maximum(a[:, None, 1], b[None, :, 1])
    intersection = xp.maximum(width, 0) * xp.maximum(height, 0)  # [n, m]
    union = box_area(a)[:, None] + box_area(b)[None, :] - intersection
    return xp.where(union > 0, intersection / xp.where(union > 0, union, 1), 0)


def clip_boxes(
    boxes: Float[Array | np.ndarray, "*n 4"], height: ArrayLike, width: ArrayLike
) -> Float[Array | np.ndarray, "*n 4"]:
    """Clip boxes to the image.

    Args:
      boxes: [..., 4] xyxy in pixels.
      height: image height in pixels; a scalar, or an array that broadcasts against `boxes[..., 0]`.
      width: image width, likewise.

    Returns:
      [..., 4] with x in [0, width] and y in [0, height]. A box wholly outside gets area 0.
    """
    xp = _namespace(boxes, height, width)
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    clipped = (
        xp.clip(x1, 0, width),
        xp.clip(y1, 0, height),
        xp.clip(x2, 0, width),
        xp.clip(y2, 0, height),
    )
    return xp.stack(clipped, axis=-1).astype(boxes.dtype)


def flip_boxes(
    boxes: Float[Array | np.ndarray, "*n 4"], width: ArrayLike
) -> Float[Array | np.ndarray, "*n 4"]:
    """Mirror boxes left-right inside an image: `x1' = width - x2`, `x2' = width - x1`.

    Args:
      boxes: [..., 4] xyxy in pixels.
      width: image width in pixels; a scalar, or an array that broadcasts against `boxes[..., 0]`.

    Returns:
      [..., 4] boxes; flipping twice restores them.
    """
    xp = _namespace(boxes, width)
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    return xp.stack((width - x2, y1, width - x1, y2), axis=-1).astype(boxes.dtype)


def scale_boxes(
    boxes: Float[Array | np.ndarray, "*n 4"], factor_x: ArrayLike, factor_y: ArrayLike
) -> Float[Array | np.ndarray, "*n 4"]:
    """Multiply x coordinates by `factor_x` and y coordinates by `factor_y`.

    Args:
      boxes: [..., 4] xyxy in pixels.
      factor_x: new pixels per old pixel along x; a scalar, or an array that broadcasts against
        `boxes[..., 0]`.
      factor_y: likewise along y.

    Returns:
      [..., 4] boxes in the resized image.
    """
    xp = _namespace(boxes, factor_x, factor_y)
    x1, y1, x2, y2 = (boxes[..., i] for i in range(4))
    scaled = (x1 * factor_x, y1 * factor_y, x2 * factor_x, y2 * factor_y)
    return xp.stack(scaled, axis=-1).astype(boxes.dtype)


def encode_boxes(
    proposals: Float[Array | np.ndarray, "*n 4"],
    targets: Float[Array | np.ndarray, "*n 4"],
    weights: tuple[float, float, float, float] = CODE_WEIGHTS,
) -> Float[Array | np.ndarray, "*n 4"]:
    """Return the regression deltas from proposals to targets: shifts of the center and log growth of the sides.

        (w_x (x' - x) / w,  w_y (y' - y) / h,  w_w log(w' / w),  w_h log(h' / h))

    with (x, y) the center, w and h the sides of a proposal, and with a prime those of its target.

    Args:
      proposals: [..., 4] xyxy in pixels.
      targets: [..., 4] xyxy in pixels.
      weights: (w_x, w_y, w_w, w_h), all positive.

    Returns:
      [..., 4] deltas. Sides below `MIN_SIDE` count as `MIN_SIDE`, so deltas of boxes without area are finite.

    Gradient: finite.
    Source: Girshick et al. 2014 (R-CNN), appendix C; weights as in Fast R-CNN's descendants.
    """
    xp = _namespace(proposals, targets)
    center, side = _center_and_side(proposals, xp)
    to_center, to_side = _center_and_side(targets, xp)
    moves, growth = (to_center - center) / side, xp.log(to_side / side)
    return xp.concatenate([moves, growth], axis=-1) * _code_weights(weights, proposals)


def decode_boxes(
    proposals: Float[Array | np.ndarray, "*n 4"],
    deltas: Float[Array | np.ndarray, "*m 4"],
    weights: tuple[float, float, float, float] = CODE_WEIGHTS,
) -> Float[Array | np.ndarray, "*m 4"]:
    """Apply deltas to proposals; the inverse of `encode_boxes`.

    Args:
      proposals: [..., 4] xyxy in pixels; broadcasts against `deltas`, as [r, 1, 4] against one delta per class.
      deltas: [..., 4] as `encode_boxes` returns them.
      weights: as in `encode_boxes`.

    Returns:
      [..., 4] xyxy in pixels, not clipped to any image. No side grows by more than 1000 / 16, whatever the deltas.

    Gradient: finite; none to deltas beyond that bound.
    Source: as `encode_boxes`; the bound is torchvision's and detectron2's.
    """
    xp = _namespace(proposals, deltas)
    center, side = _center_and_side(proposals, xp)
    deltas = deltas / _code_weights(weights, deltas)
    center = center + deltas[..., :2] * side
    half = side * xp.exp(xp.minimum(deltas[..., 2:], MAX_LOG_GROWTH)) / 2
    return xp.concatenate([center - half, center + half], axis=-1)


def box_coverage(
    boxes: np.ndarray,
    scores: np.ndarray,
    *,
    height: int,
    width: int,
    mask: np.ndarray | None = None,
) -> np.ndarray:
    """Return per pixel the sum of the scores of the boxes that cover it.

    A box covers a pixel if it contains the pixel's center: x1 <= x + 1/2 < x2, and likewise in y.

    Args:
      boxes: [r, 4] `xyxy` pixels; parts outside the image do not count.
      scores: [r] of one class, or [r, c], summed over classes.
      height, width: of the map.
      mask: [r] bool, True = real.
    Returns:
      [height, width] float32.
    Cost: O(r + height * width): differences at the boxes' corners, then cumulative sums.

    Source: Lin et al. 2020 (OIM), figures 1 and 6.
    """
    scores = np.asarray(scores, np.float64)
    weights = scores.sum(axis=tuple(range(1, scores.ndim)))
    if mask is not None:
        weights = np.where(mask, weights, 0.0)
    edges = np.ceil(np.reshape(boxes, (-1, 4)).astype(np.float64) - 0.5)
    x1, y1, x2, y2 = np.clip(edges, 0, [width, height, width, height]).astype(int).T
    x2, y2 = np.maximum(x1, x2), np.maximum(y1, y2)
    steps = np.zeros((height + 1, width + 1))
    np.add.at(steps, (y1, x1), weights)
    np.add.at(steps, (y2, x2), weights)
    np.add.at(steps, (y1, x2), -weights)
    np.add.at(steps, (y2, x1), -weights)
    return steps.cumsum(axis=0).cumsum(axis=1)[:height, :width].astype(np.float32)


def union_area(boxes: np.ndarray, height: ArrayLike, width: ArrayLike) -> float:
    """Return the area of the union of boxes inside an image.

    Args:
      boxes: [n, 4] `xyxy` pixels, continuous edges; parts outside the image do not count.
      height, width: of the image.
    Returns:
      float in [0, height * width], exact for fractional edges too.
    Cost: O(n^3); meant for the objects of one image.
    """
    boxes = np.clip(np.reshape(boxes, (-1, 4)).astype(np.float64), 0, [width, height] * 2)
    x, y = np.unique(boxes[:, 0::2]), np.unique(boxes[:, 1::2])  # edges cut the image into a grid
    covered = np.zeros((max(len(y) - 1, 0), max(len(x) - 1, 0)), bool)
    for x1, y1, x2, y2 in boxes:
        rows = slice(*np.searchsorted(y, (y1, y2)))
        covered[rows, slice(*np.searchsorted(x, (x1, x2)))] = True
    return float(np.diff(y) @ covered @ np.diff(x))


def _center_and_side(boxes: ArrayLike, xp: ModuleType) -> tuple[ArrayLike, ArrayLike]:
    """Return (x, y) of the centers, and (width, height), at least `MIN_SIDE`; both [..., 2]."""
    low, high = boxes[..., :2], boxes[..., 2:]
    return (low + high) / 2, xp.maximum(high - low, MIN_SIDE)


def _code_weights(weights: tuple[float, ...], like: ArrayLike) -> np.ndarray:
    """Return weights of deltas as an array that broadcasts against `like`."""
    return np.array(weights, like.dtype).reshape((1,) * (like.ndim - 1) + (4,))
