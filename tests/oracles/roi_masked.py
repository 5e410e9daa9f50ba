"""RoI max pooling as a masked maximum over the whole map, RoI by RoI: correct, plain and slow.

It is what one writes in JAX without tables.
"""

import jax
import jax.numpy as jnp


def _cells_of_bins(low, high, size, length, num_bins):
    """Return which of `length` cells belong to each bin, [p, length]."""
    low, high = (jnp.sign(x) * jnp.floor(jnp.abs(x) + 0.5) for x in (low, high))
    low, high = low.astype(jnp.int32), high.astype(jnp.int32)
    width = jnp.maximum(high - low + 1, 1)
    i = jnp.arange(num_bins)[:, None]
    start = low + i * width // num_bins
    end = low - (-(i + 1) * width // num_bins)
    cell = jnp.arange(length)[None, :]
    return (cell >= start) & (cell < end) & (cell < size)


def masked_max_roi_pool(features, boxes, mask, map_size, *, output_size, spatial_scale):
    """Pool as `wsod_jax.ops.roi.roi_max_pool`: same arguments, same values.

    The maxima are taken over columns, then over rows. Memory is bounded by `lax.map` over RoIs and by
    `jax.checkpoint`, so the backward pass computes each RoI again. Gradients of tied maxima are shared
    among them, where `roi_max_pool` has the first take all.
    """

    def one_image(features, boxes, mask, map_size):
        lowest = jnp.asarray(-jnp.inf, features.dtype)

        @jax.checkpoint
        def one_roi(roi):
            x1, y1, x2, y2 = roi[0] * spatial_scale
            rows = _cells_of_bins(y1, y2, map_size[0], features.shape[0], output_size)
            columns = _cells_of_bins(x1, x2, map_size[1], features.shape[1], output_size)

            def over_columns(column):
                return jnp.max(jnp.where(column[None, :, None], features, lowest), axis=1)  # [h, d]

            strips = jax.lax.map(over_columns, columns)  # [p, h, d]
            covered = jnp.where(rows[:, None, :, None], strips[None], lowest)  # [p, p, h, d]
            pooled = jnp.max(covered, axis=2)
            return jnp.where(jnp.isfinite(pooled) & roi[1], pooled, 0)

        return jax.lax.map(one_roi, (boxes, mask))

    return jax.vmap(one_image)(features, boxes, mask, map_size)
