"""The grid of cells over an image on which the dense CRF is solved, and what goes between cells and pixels."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wsod_jax.ops.resize import EXACT, interpolation

LONGER_SIDE = 500  # pixels of the image in which distances are given


class Axis(NamedTuple):
    """The pixels of an image along one axis, and the cells of the grid over them, all of the same length.

    Attributes:
      pixels: [n] bool, True = inside the image.
      cells: [m] bool, True = inside the image.
      side: [] float32, length of a cell in pixels, >= 1.
      share: [m, n] float32, the share of pixel n that lies in cell m.
      interpolation: [n, m] float32, bilinear weights of cells in pixels; constant beyond the outermost centers.
    """

    pixels: Bool[Array, " n"]
    cells: Bool[Array, " m"]
    side: Float[Array, ""]
    share: Float[Array, "m n"]
    interpolation: Float[Array, "n m"]


class Grid(NamedTuple):
    """The grid of cells over an image.

    Attributes:
      rows: of pixels and of cells.
      columns: likewise.
      scale: [] float32, s: the width of a pixel in those of the image whose longer side is 500.
    """

    rows: Axis
    columns: Axis
    scale: Float[Array, ""]


def grid_over(shape: tuple[int, int], size: Int[Array, " 2"], max_side: int) -> Grid:
    """Return the grid over an image of valid `size` on a canvas of `shape`.

    The longer side of the valid part has `max_side` cells, the shorter as many as make them nearly square. Where both
    sides have `max_side` pixels at most, pixels are cells.
    """
    longer = jnp.max(size)
    axes = []
    for length, valid in zip(shape, (size[0], size[1]), strict=True):
        count = -(-valid * max_side // jnp.maximum(longer, max_side))  # rounded up; <= valid
        side = jnp.maximum(valid / jnp.maximum(count, 1), 1.0).astype(jnp.float32)
        pixel = jnp.arange(length, dtype=jnp.float32)
        cell = jnp.arange(min(length, max_side), dtype=jnp.float32)
        pixels, cells = pixel < valid, cell < count
        start = (cell * side)[:, None]
        share = jnp.minimum(pixel[None, :] + 1, start + side) - jnp.maximum(pixel[None, :], start)
        share = jnp.where(cells[:, None] & pixels[None, :], jnp.clip(share, 0.0, 1.0), 0.0)
        weights = interpolation(pixel + 0.5, len(cell), count, side)
        axes.append(Axis(pixels, cells, side, share, jnp.where(pixels[:, None], weights, 0.0)))
    return Grid(*axes, LONGER_SIDE / jnp.maximum(longer, 1).astype(jnp.float32))


def along(
    x: Float[Array, "h w k"], rows: Float[Array, "m h"], columns: Float[Array, "n w"]
) -> Float[Array, "m n k"]:
    """Multiply a map by a matrix along its rows, and by one along its columns."""
    return jnp.einsum("mh,hwk,nw->mnk", rows, x, columns, precision=EXACT)


def interpolated(x: Float[Array, "y x k"], grid: Grid) -> Float[Array, "h w k"]:
    """Return values of cells at pixels, bilinearly interpolated."""
    return along(x, grid.rows.interpolation, grid.columns.interpolation)
