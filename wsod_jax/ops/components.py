"""Connected components of a mask and their boxes, inside jit."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

_ALONG_SIDES = ((0, 1), (1, 0), (0, -1), (-1, 0))
_OVER_CORNERS = ((1, 1), (1, -1), (-1, 1), (-1, -1))


def connected_components(mask: Bool[Array, "h w"], connectivity: int = 4) -> Int[Array, "h w"]:
    """Label the connected components of a mask.

    Every True cell points to a cell of its component, at first to the start of its horizontal run. In each round a
    cell takes the lowest target of its neighbors' targets for itself and for its own target, then pointers are
    doubled. Pointers only decrease, and converge to the lowest cell of each component. A path that winds through the
    whole mask takes about log2 of its length in rounds; passing labels from cell to cell would take its length.

    Args:
      mask: [h, w] bool; both sides may be 0, and h * w < 2**31.
      connectivity: static. 4: cells connect along their sides, 8: along corners too.

    Returns:
      [h, w] int32: the smallest flat index (row * w + column) in the cell's component; -1 where False.

    Raises:
      ValueError: another connectivity.

    Gradient: none.   Cost: O(h w) memory, a handful of rounds of gathers and one scatter; under `vmap` as many rounds
    as the slowest mask needs.
    Source: the rounds are those of FastSV (Zhang, Azad, Hu 2020), minimum kept.
    """
    if connectivity not in (4, 8):
        raise ValueError(f"connectivity is {connectivity!r}; allowed: 4, 8")
    if mask.size == 0:
        return jnp.full(mask.shape, -1, jnp.int32)

    def unsettled(state: tuple[Array, Array]) -> Array:
        return state[1]

    def go_on(state: tuple[Array, Array]) -> tuple[Array, Array]:
        settled = _round(state[0], mask, connectivity)
        return settled, jnp.any(settled != state[0])

    start = (_run_starts(mask), jnp.any(mask))
    targets, _ = jax.lax.while_loop(unsettled, go_on, start)
    return jnp.where(mask, targets.reshape(mask.shape), -1)


def _run_starts(mask: Bool[Array, "h w"]) -> Int[Array, " n"]:
    """Return per cell the flat index where its horizontal run starts; the cell itself where False."""
    index = jnp.arange(mask.size, dtype=jnp.int32).reshape(mask.shape)
    goes_on = mask & jnp.pad(mask[:, :-1], ((0, 0), (1, 0)))
    starts = jax.lax.cummax(jnp.where(goes_on, -1, index), axis=1)
    return jnp.where(mask, starts, index).reshape(-1)


def _round(targets: Int[Array, " n"], mask: Bool[Array, "h w"], connectivity: int) -> Array:
    """Return the pointers after one round of `connected_components`."""
    ahead = targets[targets]
    lowest = _lowest_neighbor(ahead.reshape(mask.shape), mask, connectivity).reshape(-1)
    lowest = jnp.minimum(lowest, ahead)
    lowered = jnp.minimum(targets.at[targets].min(lowest), lowest)
    return lowered[lowered]


def _lowest_neighbor(
    values: Int[Array, "h w"], mask: Bool[Array, "h w"], connectivity: int
) -> Int[Array, "h w"]:
    """Return the lowest value among a True cell's True neighbors; a False cell's own value."""
    height, width = mask.shape
    nothing = jnp.iinfo(values.dtype).max
    padded = jnp.pad(jnp.where(mask, values, nothing), 1, constant_values=nothing)
    lowest = values
    for down, right in _ALONG_SIDES + (_OVER_CORNERS if connectivity == 8 else ()):
        neighbor = padded[1 + down : 1 + down + height, 1 + right : 1 + right + width]
        lowest = jnp.minimum(lowest, neighbor)
    return jnp.where(mask, lowest, values)


def component_boxes(
    labels: Int[Array, "h w"], max_components: int
) -> tuple[Float[Array, "g 4"], Bool[Array, " g"], Int[Array, ""]]:
    """Return the tightest box around every component.

    Args:
      labels: [h, w] int32 as `connected_components` returns them.
      max_components: static, slots for boxes. Components beyond it, the last in row order, are left out and counted.

    Returns:
      boxes: [g, 4] float32 `xyxy` in cells, continuous edges: one cell (row i, column j) gives (j, i, j + 1, i + 1).
        Components are ordered by their label, that is by their first cell in row order; 0 in empty slots.
      mask: [g] bool, False in empty slots, which are last.
      overflow: [] int32, components without a slot.

    Gradient: none.   Cost: O(h w + g) memory.
    """
    height, width = labels.shape
    index = jnp.arange(labels.size, dtype=jnp.int32).reshape(labels.shape)
    is_first = labels == index
    count = jnp.sum(is_first, dtype=jnp.int32)
    mask = jnp.arange(max_components) < count
    overflow = jnp.maximum(count - max_components, 0)
    if labels.size == 0 or max_components == 0:
        return jnp.zeros((max_components, 4)), mask, overflow
    order = jnp.cumsum(is_first.reshape(-1), dtype=jnp.int32) - 1
    slot = jnp.where(labels >= 0, order[jnp.maximum(labels, 0)], max_components).reshape(-1)
    rows, columns = jnp.divmod(index.reshape(-1), width)
    low = jnp.full((max_components, 2), max(height, width), jnp.int32)
    low = low.at[slot].min(jnp.stack([columns, rows], axis=1), mode="drop")
    high = jnp.zeros((max_components, 2), jnp.int32)
    high = high.at[slot].max(jnp.stack([columns, rows], axis=1) + 1, mode="drop")
    boxes = jnp.concatenate([low, high], axis=1).astype(jnp.float32)
    return jnp.where(mask[:, None], boxes, 0.0), mask, overflow
