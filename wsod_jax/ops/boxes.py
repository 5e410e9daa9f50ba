"""Geometry of boxes: `xyxy`, absolute pixels, continuous edges (width = x2 - x1).

Every function takes NumPy arrays and returns NumPy, or takes `jax.Array`s and returns `jax.Array`s.
"""

from __future__ import annotations

from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Float


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
    """Move every edge of the boxes that lies outside the image onto its border.

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
    """Multiply the horizontal edges' positions by `factor_x` and the vertical ones' by `factor_y`.

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
