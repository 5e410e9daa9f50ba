"""Between the cells of a map and the pixels of its image.

Cell i covers the pixels i·stride to (i + 1)·stride along an axis; its value stands at their middle.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Shaped

EXACT = jax.lax.Precision.HIGHEST  # by default accelerators round the operands


def interpolation(
    place: Float[Array, "*b n"], num_cells: int, valid: Int[Array, "*#b"], stride: ArrayLike
) -> Float[Array, "*b n {num_cells}"]:
    """Return the weights that sample a map linearly at places along one axis.

    Beyond the outermost valid cells' centers the map is constant; without valid cells it is 0.

    Args:
      place: [..., n] pixels, continuous: pixel 0 spans 0 to 1.
      num_cells: cells of the array.
      valid: [...] cells that hold the map, the first ones.
      stride: pixels per cell.
    """
    valid = jnp.asarray(valid)[..., None]
    cell = jnp.clip(place / stride - 0.5, 0, jnp.maximum(valid - 1, 0))
    cells = jnp.arange(num_cells).reshape(*(1,) * cell.ndim, num_cells)
    weights = jnp.maximum(1.0 - jnp.abs(cell[..., None] - cells), 0.0)
    return jnp.where(valid[..., None] > 0, weights, 0.0)


def upsample(
    cells: Float[Array, "h w"], valid: Int[Array, " 2"], stride: float, shape: tuple[int, int]
) -> Float[Array, "H W"]:
    """Return a map at the centers of its image's pixels, by bilinear interpolation.

    Args:
      cells: [h, w].
      valid: [2] valid (rows, columns).
      stride: pixels per cell.
      shape: (H, W) of the result.
    """
    rows, columns = (
        interpolation(jnp.arange(pixels) + 0.5, count, valid[axis], stride)
        for axis, (pixels, count) in enumerate(zip(shape, cells.shape, strict=True))
    )
    return jnp.einsum("Hh,hw,Ww->HW", rows, cells, columns, precision=EXACT)


def average_cells(
    image: Shaped[Array, "H W d"], size: Int[Array, " 2"], stride: int, shape: tuple[int, int]
) -> Float[Array, "h w d"]:
    """Return the mean of the valid pixels of every cell, float32; 0 for a cell without any.

    Args:
      image: [H, W, d].
      size: [2] valid (height, width) in pixels.
      stride: pixels per cell.
      shape: (h, w) of the result.
    """
    height, width = (count * stride for count in shape)
    valid = (jnp.arange(image.shape[0])[:, None] < size[0]) & (
        jnp.arange(image.shape[1])[None, :] < size[1]
    )

    def sums(values: ArrayLike) -> jax.Array:
        values = values[:height, :width]
        pad = [(0, height - values.shape[0]), (0, width - values.shape[1]), (0, 0)]
        blocks = jnp.pad(values, pad).reshape(shape[0], stride, shape[1], stride, -1)
        return blocks.sum(axis=(1, 3))

    total = sums(jnp.where(valid[..., None], image.astype(jnp.float32), 0.0))
    return total / jnp.maximum(sums(valid[..., None].astype(jnp.float32)), 1.0)
