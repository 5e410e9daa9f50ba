"""Geometry of views: boxes and maps between the pixels of a view and those of the original image; `types.Views`."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from wsod_jax.ops.boxes import flip_boxes
from wsod_jax.ops.crf import CrfOptions, dense_crf_upsampled
from wsod_jax.ops.resize import EXACT, interpolation
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


class ClassMaps(NamedTuple):
    """Probabilities of every class on the images, made smaller where they are large.

    Attributes:
      maps: [b, H, W, c] float32 in [0, 1], at the centers of cells of `1 / scale` pixels.
      size: [b, 2] int32, valid (rows, columns).
      scale: [b] float32, cells per pixel of the original image, at most 1.
    """

    maps: jax.Array
    size: jax.Array
    scale: jax.Array

    def as_view(self, batch: Batch) -> tuple[FeatureMap, Batch]:
        """Return the maps as those of a view of the images, `batch` being any view of them."""
        scale = jnp.repeat(self.scale[:, None], 2, axis=1)
        views = batch.views.replace(
            scale=scale,
            offset=jnp.zeros_like(batch.views.offset),
            flipped=jnp.zeros_like(batch.views.flipped),
        )
        return FeatureMap(self.maps, self.size, 1.0), batch.replace(views=views)


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def class_maps(
    maps: Sequence[FeatureMap],
    batches: Sequence[Batch],
    canvas: tuple[int, int],
    max_side: int,
    crf: CrfOptions | None,
) -> ClassMaps:
    """Return every class's probability on the images, averaged over views, and refined by a CRF.

    The CRF takes background, 1 − max_c p_c, and all classes as labels. It yields q, of which the probability of a class
    against the background is taken, q_c / (q_c + q_background).

    Args:
      maps: probabilities [b, h, w, c], one map per view.
      batches: of these views; the first one's pixels are the image of the CRF.
      canvas: (H, W) of the result, at least the size of every image after scaling.
      max_side: images with a longer side are scaled down to this, in pixels.
      crf: `None` refines nothing.

    Cost: 4 H W c bytes for each image, several times.
    """
    original = batches[0].views.original_size
    scale = jnp.minimum(1.0, max_side / jnp.max(original, axis=1))
    size = jnp.maximum(jnp.floor(original * scale[:, None] + 0.5), 1).astype(jnp.int32)

    def sampled(values: jax.Array, valid: jax.Array, stride: float, batch: Batch) -> jax.Array:
        weights = []
        for axis in (0, 1):
            center = (jnp.arange(canvas[axis])[None, :] + 0.5) / scale[:, None]
            place = _in_view(center, batch, axis)
            weights.append(interpolation(place, values.shape[1 + axis], valid[:, axis], stride))
        return jnp.einsum("bHh,bhwc,bWw->bHWc", weights[0], values, weights[1], precision=EXACT)

    views = [
        sampled(one.features.astype(jnp.float32), one.size, one.stride, batch)
        for one, batch in zip(maps, batches, strict=True)
    ]
    mean = sum(views) / len(views)
    if crf is None:
        return ClassMaps(mean, size, scale)
    first = batches[0]
    image = sampled(jnp.asarray(first.image).astype(jnp.float32), first.image_size, 1.0, first)
    background = 1.0 - jnp.max(mean, axis=-1, keepdims=True)
    labels = jnp.concatenate([background, mean], axis=-1)

    def refined(*row: jax.Array) -> jax.Array:  # where the image lies
        return dense_crf_upsampled(*(x[None] for x in row), crf)[0]

    q = jax.vmap(refined)(labels, image, size)
    either = q[..., 1:] + q[..., :1]
    return ClassMaps(q[..., 1:] / jnp.where(either > 0, either, 1.0), size, scale)


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
    place = _in_view(center, batch, axis)
    return interpolation(place, maps.features.shape[1 + axis], maps.size[:, axis], maps.stride)


def _in_view(place: jax.Array, batch: Batch, axis: int) -> jax.Array:
    """Map places [b, n] along an axis of the original images to the pixels of views."""
    place = place * batch.views.scale[:, 1 - axis, None] - batch.views.offset[:, 1 - axis, None]
    if axis == 1:
        width = batch.image_size[:, 1, None]
        place = jnp.where(batch.views.flipped[:, None], width - place, place)
    return place
