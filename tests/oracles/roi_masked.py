"""RoI max pooling as a masked maximum over the whole map, RoI by RoI: correct, plain and slow.

It is what one writes in JAX without tables; the benchmark compares against it.
"""

from fractions import Fraction

import jax
import jax.numpy as jnp


def masked_max_roi_pool(features, boxes, mask, map_size, *, output_size, spatial_scale):
    """Pool as `wsod_jax.ops.roi.roi_max_pool`: same arguments, same values.

    The maxima are taken over columns, then over rows. Memory is bounded by `lax.map` over RoIs and by
    `jax.checkpoint`, so the backward pass computes each RoI again. Gradients of tied maxima are shared
    among them, where `roi_max_pool` has the first take all.
    """
    p = output_size
    scale = float(Fraction(spatial_scale))

    def cells_of_bins(low, high, size, length):
        low, high = (jnp.sign(x) * jnp.floor(jnp.abs(x) + 0.5) for x in (low, high))
        low, high = low.astype(jnp.int32), high.astype(jnp.int32)
        width = jnp.maximum(high - low + 1, 1)
        i = jnp.arange(p)
        start = low + i * width // p
        end = low - (-(i + 1) * width // p)
        cell = jnp.arange(length)
        real = (cell >= start[:, None]) & (cell < end[:, None])
        return real & (cell < size)  # [p, length]

    def one_image(features, boxes, mask, map_size):
        @jax.checkpoint
        def one_roi(roi):
            x1, y1, x2, y2 = roi[0] * scale
            rows = cells_of_bins(y1, y2, map_size[0], features.shape[0])
            columns = cells_of_bins(x1, x2, map_size[1], features.shape[1])
            lowest = jnp.asarray(-jnp.inf, features.dtype)

            def over_columns(column):
                return jnp.max(jnp.where(column[None, :, None], features, lowest), axis=1)  # [h, d]

            strips = jax.lax.map(over_columns, columns)  # [p, h, d]
            covered = jnp.where(rows[:, None, :, None], strips[None], lowest)  # [p, p, h, d]
            pooled = jnp.max(covered, axis=2)
            return jnp.where(jnp.isfinite(pooled) & roi[1], pooled, 0)

        return jax.lax.map(one_roi, (boxes, mask))

    return jax.vmap(one_image)(features, boxes, mask, map_size)
