"""Geometry of views: boxes and maps between the pixels of a view and those of the original image; `types.Views`."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from wsod_jax.ops.boxes import flip_boxes
from wsod_jax.types import Batch, FeatureMap, Views

_ROWS_AT_ONCE = 32  # of a label map


def to_original(boxes: ArrayLike, views: Views, width: ArrayLike) -> jax.Array:
    """Map boxes [b, ..., 4] of views, `width` [b] pixels wide, to the pixels of the original images."""
    scale, offset = _of_corners(views, boxes.ndim)
    return (_mirrored(boxes, views.flipped, width) + offset) * (1.0 / scale)


def to_view(boxes: ArrayLike, views: Views, width: ArrayLike) -> jax.Array:
    """Map boxes [b, ..., 4] of the original images to the pixels of views: the inverse of `to_original`."""
    scale, offset = _of_corners(views, boxes.ndim)
    return _mirrored(boxes * scale - offset, views.flipped, width)


def _of_corners(views: Views, ndim: int) -> tuple[jax.Array, jax.Array]:
    """Return scale and offset of x1, y1, x2, y2, [b, 1 ..., 4] with `ndim` axes."""
    shape = (len(views.scale), *(1,) * (ndim - 2), 4)
    return tuple(jnp.tile(x, (1, 2)).reshape(shape) for x in (views.scale, views.offset))


def _mirrored(boxes: ArrayLike, flipped: ArrayLike, width: ArrayLike) -> jax.Array:
    """Mirror the boxes of the images where `flipped` [b] is True."""
    rows = (len(boxes), *(1,) * (boxes.ndim - 2))
    return jnp.where(flipped.reshape(*rows, 1), flip_boxes(boxes, width.reshape(rows)), boxes)


@functools.partial(jax.jit, static_argnums=(2, 3))
def label_map(
    maps: Sequence[FeatureMap], batches: Sequence[Batch], canvas: tuple[int, int], threshold: float
) -> jax.Array:
    """Return every pixel's class: that of the highest probability, averaged over views.

    Each view's map is sampled at the pixel's center, by bilinear interpolation between the centers of valid cells;
    beyond the outermost centers the map is constant, and a map without valid cells is 0.

    Args:
      maps: probabilities [b, h, w, c], one map per view.
      batches: of these views; pixels are not needed.
      canvas: (H, W), at least the size of every image.
      threshold: a pixel is background where no class exceeds this.

    Returns:
      [b, H, W] uint8, 0 background, else class + 1; values outside an image are arbitrary.

    Ties: the lower class wins.   Cost: O(32 W c) memory for each image.
    """
    blocks = -(-canvas[0] // _ROWS_AT_ONCE)
    views = []
    for view, batch in zip(maps, batches, strict=True):
        rows = _interpolation(view, batch, 0, blocks * _ROWS_AT_ONCE)  # [b, H, h]
        columns = _interpolation(view, batch, 1, canvas[1])  # [b, W, w]
        rows = jnp.moveaxis(rows.reshape(len(rows), blocks, _ROWS_AT_ONCE, -1), 1, 0)
        views.append((rows, view.features.astype(jnp.float32), columns))

    def block(number: jax.Array) -> jax.Array:
        parts = [
            jnp.einsum("bHh,bhwc,bWw->bHWc", rows[number], values, columns)
            for rows, values, columns in views
        ]
        mean = sum(parts) / len(parts)
        best = jnp.argmax(mean, axis=-1) + 1
        return jnp.where(jnp.max(mean, axis=-1) > threshold, best, 0).astype(jnp.uint8)

    labels = jax.lax.map(block, jnp.arange(blocks))  # [blocks, b, 32, W]
    return jnp.moveaxis(labels, 0, 1).reshape(-1, blocks * _ROWS_AT_ONCE, canvas[1])[:, : canvas[0]]


def _interpolation(maps: FeatureMap, batch: Batch, axis: int, pixels: int) -> jax.Array:
    """Return the weights [b, pixels, cells] that sample a map at pixel centers of the original images."""
    center = jnp.arange(pixels)[None, :] + 0.5
    place = center * batch.views.scale[:, 1 - axis, None] - batch.views.offset[:, 1 - axis, None]
    if axis == 1:
        width = batch.image_size[:, 1, None]
        place = jnp.where(batch.views.flipped[:, None], width - place, place)
    last = jnp.maximum(maps.size[:, axis, None] - 1, 0)
    cell = jnp.clip(place / maps.stride - 0.5, 0, last)  # [b, pixels]
    cells = jnp.arange(maps.features.shape[1 + axis])[None, None, :]
    weights = jnp.maximum(1.0 - jnp.abs(cell[..., None] - cells), 0.0)
    return jnp.where(maps.size[:, axis, None, None] > 0, weights, 0.0)
