"""RoI max pooling, exact and gather-only.

Every bin of a RoI is a rectangle of cells, and a rectangle is covered by four windows whose sides are
powers of two, one in each of its corners. So the maps of running maxima over all such windows (the
tables) are computed once, and a bin is the maximum of four table entries, however large it is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

TABLE_BYTES = 256 * 2**20  # size that the tables of one block of channels may reach
LIMIT_CELLS = (
    2**20
)  # box edges further out than this count as this far, so that integers stay small


class _Cover(NamedTuple):
    """How two windows cover each bin along one axis: [b, r, p] int32 each.

    Attributes:
      level: the windows are `2**level` cells long, at most as long as the bin.
      first: start of the window that begins with the bin.
      last: start of the window that ends with the bin.
      filled: bool, False where the bin holds no cell (the others are then 0).
    """

    level: Array
    first: Array
    last: Array
    filled: Array


def roi_max_pool(
    features: Float[Array, "b h w d"],
    boxes: Float[Array, "b r 4"],
    mask: Bool[Array, "b r"],
    map_size: Int[Array, "b 2"],
    *,
    output_size: int,
    spatial_scale: float,
) -> Float[Array, "b r {output_size} {output_size} d"]:
    """Pool each box's part of the feature map onto a fixed grid by maxima over quantised bins.

    With x1, x2 = round(spatial_scale * edges) (half away from zero) and n = max(x2 - x1 + 1, 1), bin i
    covers the cells from x1 + floor(i n / p) to x1 + ceil((i + 1) n / p), end excluded, that lie in
    the map; neighbouring bins may share a cell. The vertical axis is alike.

    Args:
      features: [b, h, w, d] finite, float32 or bfloat16.
      boxes: [b, r, 4] xyxy in pixels; may reach out of the image or be empty.
      mask: [b, r] True = real proposal.
      map_size: [b, 2] valid (rows, columns) of the map; cells beyond are never read.
      output_size: p, bins per side.
      spatial_scale: map cells per pixel, 1 / stride.

    Returns:
      [b, r, p, p, d] in the features' type; 0 in bins without a cell and where masked.

    Ties: the gradient of a bin goes to its first maximum, rows before columns.   Gradient: to
    `features` only.   Cost: O(b h w d log(h / p) log(w / p) + b r p^2 d) operations; blocks of channels
    keep working memory near `TABLE_BYTES` beyond a few times the output.
    Source: Girshick 2015, section 2.1; bins as in Caffe's RoI pooling layer, which every released
    OICR-family model uses. Differs from it in computing the bin edges in exact integers: in float32 they
    come out one cell off at some sizes, 57, 114 and 121 cells among them.
    """
    edges = spatial_scale * jax.lax.stop_gradient(boxes).astype(jnp.float32)
    edges = _round_half_away(jnp.clip(edges, -LIMIT_CELLS, LIMIT_CELLS))  # [b, r, 4] int32
    rows = _cover(edges[..., 1], edges[..., 3], map_size[:, 0], output_size)
    columns = _cover(edges[..., 0], edges[..., 2], map_size[:, 1], output_size)
    pooled = _pool(features, rows, columns)
    filled = rows.filled[..., :, None] & columns.filled[..., None, :] & mask[..., None, None]
    return jnp.where(filled[..., None], pooled, 0)


def _round_half_away(x: Array) -> Array:
    whole = jnp.floor(jnp.abs(x))  # adding 0.5 first would round 0.49999997 up
    whole = whole + (jnp.abs(x) - whole >= 0.5)
    return (jnp.sign(x) * whole).astype(jnp.int32)


def _cover(low: Array, high: Array, size: Array, num_bins: int) -> _Cover:
    """Cut [b, r] intervals of cells into bins inside a map of `size` [b] cells, and cover each bin."""
    length = jnp.maximum(high - low + 1, 1)[..., None]
    i = jnp.arange(num_bins)[None, None]
    size = size[:, None, None]
    start = jnp.clip(low[..., None] + i * length // num_bins, 0, size)  # [b, r, p]
    end = jnp.clip(low[..., None] - (-(i + 1) * length // num_bins), 0, size)
    filled = end > start
    level = jnp.where(filled, 31 - jax.lax.clz(jnp.maximum(end - start, 1)), 0)
    last = jnp.where(filled, end - (1 << level), 0)
    return _Cover(level, jnp.where(filled, start, 0), last, filled)


# ---------------------------------------------------------------------------------------------------
# Tables: [b, ly, lx, h, w, d], entry (ly, lx, y, x) is the maximum over the window of 2**ly rows and
# 2**lx columns that starts at (y, x). Windows that leave the map are shorter, and never looked up.


def _ahead(x: Array, step: int, axis: int, fill: float) -> Array:
    """Return `x` read `step` cells further along `axis`, `fill` beyond its end (or its beginning)."""
    config = [(0, 0, 0)] * x.ndim
    config[axis] = (-step, step, 0)
    return jax.lax.pad(x, jnp.asarray(fill, x.dtype), config)


def _running_max(x: Array, num_levels: int, axis: int) -> list[Array]:
    """Return the maxima of `x` over windows of 1, 2, 4, … cells along `axis`."""
    tables = [x]
    for level in range(num_levels - 1):
        tables.append(jnp.maximum(tables[-1], _ahead(tables[-1], 2**level, axis, -jnp.inf)))
    return tables


def _running_max_vjp(tables: list[Array], grads: list[Array], axis: int) -> Array:
    """Send the gradients of `_running_max`'s tables to its input, to the first cell on ties."""
    grad = grads[-1]
    for level in reversed(range(len(tables) - 1)):
        is_first = tables[level] >= _ahead(tables[level], 2**level, axis, -jnp.inf)
        later = _ahead(jnp.where(is_first, 0, grad), -(2**level), axis, 0)
        grad = grads[level] + jnp.where(is_first, grad, 0) + later
    return grad


def _first_rows(tables: list[Array], axis: int) -> list[Array]:
    """Return, for each entry of the vertical tables, the first row that holds its maximum."""
    rows = [jax.lax.broadcasted_iota(jnp.int16, tables[0].shape, axis)]
    for level, table in enumerate(tables[:-1]):
        is_first = table >= _ahead(table, 2**level, axis, -jnp.inf)
        rows.append(jnp.where(is_first, rows[-1], _ahead(rows[-1], 2**level, axis, 0)))
    return rows


def _corners(rows: _Cover, columns: _Cover, levels: tuple[int, int], size: tuple[int, int]):
    """Return where each bin's four windows (top-left, bottom-left, top-right, bottom-right) lie in
    the flattened tables: four [b, n] int32, n = r p p."""

    def index(y: Array, x: Array) -> Array:
        table = rows.level[..., :, None] * levels[1] + columns.level[..., None, :]
        cell = (table * size[0] + y[..., :, None]) * size[1] + x[..., None, :]  # [b, r, p, p]
        return cell.reshape(cell.shape[0], -1)

    return [index(y, x) for x in (columns.first, columns.last) for y in (rows.first, rows.last)]


def _flat(tables: list[Array]) -> Array:
    """Stack ly tables of [b, lx, h, w, d] into [b, ly * lx * h * w, d]."""
    stacked = jnp.stack(tables, axis=1)
    return stacked.reshape(stacked.shape[0], -1, stacked.shape[-1])


def _take(table: Array, index: Array) -> Array:
    return jax.vmap(lambda t, i: t.at[i].get(mode="promise_in_bounds"))(table, index)


def _tables(features: Array, levels: tuple[int, int]) -> tuple[list[Array], list[Array]]:
    horizontal = _running_max(features, levels[1], axis=2)
    return horizontal, _running_max(jnp.stack(horizontal, axis=1), levels[0], axis=2)


def _pool_block(features: Array, rows: _Cover, columns: _Cover, levels: tuple[int, int]) -> Array:
    """Pool [b, h, w, d] to [b, n, d]."""
    _, tables = _tables(features, levels)
    table = _flat(tables)
    corners = _corners(rows, columns, levels, features.shape[1:3])
    return functools.reduce(jnp.maximum, (_take(table, index) for index in corners))


def _pool_block_fwd(
    features: Array, rows: _Cover, columns: _Cover, levels: tuple[int, int]
) -> tuple[Array, Array]:
    """Pool as `_pool_block`, and tell which corner (0..3) of each bin holds its first maximum.

    Of two windows that begin in the same row, or in the same column, and together form a rectangle,
    the upper or left one holds the first maximum on ties, except that of a left and a right one the
    right wins if its maximum lies in an earlier row.
    """
    _, tables = _tables(features, levels)
    table, first_row = _flat(tables), _flat(_first_rows(tables, axis=2))
    corners = _corners(rows, columns, levels, features.shape[1:3])
    top_left, low_left, top_right, low_right = (_take(table, index) for index in corners)
    row_tl, row_ll, row_tr, row_lr = (_take(first_row, index) for index in corners)
    left, right = jnp.maximum(top_left, low_left), jnp.maximum(top_right, low_right)
    row_left = jnp.where(top_left >= low_left, row_tl, row_ll)
    row_right = jnp.where(top_right >= low_right, row_tr, row_lr)
    is_left = (left > right) | ((left == right) & (row_left <= row_right))
    low = jnp.where(is_left, low_left > top_left, low_right > top_right)
    return jnp.maximum(left, right), jnp.where(is_left, 0, 2).astype(jnp.int8) + low


def _pool_block_vjp(
    features: Array,
    winner: Array,
    grad: Array,
    rows: _Cover,
    columns: _Cover,
    levels: tuple[int, int],
) -> Array:
    """Send [b, n, d] gradients of the bins to the cells [b, h, w, d]."""
    horizontal, tables = _tables(features, levels)
    corners = _corners(rows, columns, levels, features.shape[1:3])
    batch, _, channels = grad.shape
    table_grad = jnp.zeros((batch, tables[0][0, ..., 0].size * levels[0], channels), jnp.float32)
    for corner, index in enumerate(corners):
        share = jnp.where(winner == corner, grad, 0).astype(jnp.float32)
        table_grad = jax.vmap(lambda t, i, g: t.at[i].add(g, mode="promise_in_bounds"))(
            table_grad, index, share
        )
    table_grad = table_grad.reshape(batch, levels[0], *tables[0].shape[1:])
    grads = _running_max_vjp(tables, list(jnp.moveaxis(table_grad, 1, 0)), axis=2)
    grads = _running_max_vjp(horizontal, list(jnp.moveaxis(grads, 1, 0)), axis=2)
    return grads.astype(features.dtype)


# ---------------------------------------------------------------------------------------------------


def _by_channel_blocks(function: Callable, arrays: tuple[Array, ...], levels: tuple[int, int]):
    """Apply `function` to blocks of the last axis of all arrays, one block after another."""
    batch, height, width, channels = arrays[0].shape
    channel_bytes = 4 * batch * levels[0] * levels[1] * height * width
    num_blocks = next(
        n
        for n in range(1, channels + 1)
        if channels % n == 0 and (n == channels or channel_bytes * channels <= n * TABLE_BYTES)
    )
    if num_blocks == 1:
        return function(*arrays)

    def split(x: Array) -> Array:
        return jnp.moveaxis(x.reshape(*x.shape[:-1], num_blocks, -1), -2, 0)

    def join(x: Array) -> Array:
        return jnp.moveaxis(x, 0, -2).reshape(*x.shape[1:-1], -1)

    blocks = jax.lax.map(lambda xs: function(*xs), tuple(split(x) for x in arrays))
    return jax.tree.map(join, blocks)


def _at_levels(function: Callable, arrays: tuple[Array, ...], rows: _Cover, columns: _Cover):
    """Run `function` with as many table levels as the bins need.

    Boxes inside the image have bins of at most ceil((size + 1) / p) + 1 cells; only boxes that reach
    far out of it need tables up to the size of the map, so those are a branch of their own.
    """
    sizes, num_bins = arrays[0].shape[1:3], rows.level.shape[-1]
    usual = tuple(min(-(-(n + 1) // num_bins) + 1, n).bit_length() for n in sizes)
    full = tuple(n.bit_length() for n in sizes)

    def run(levels: tuple[int, int], arrays, rows, columns):
        block = functools.partial(function, rows=rows, columns=columns, levels=levels)
        return _by_channel_blocks(block, arrays, levels)

    if usual == full:
        return run(full, arrays, rows, columns)
    fits = (jnp.max(rows.level) < usual[0]) & (jnp.max(columns.level) < usual[1])
    branches = functools.partial(run, usual), functools.partial(run, full)
    return jax.lax.cond(fits, *branches, arrays, rows, columns)


@jax.custom_vjp
def _pool(features: Array, rows: _Cover, columns: _Cover) -> Array:
    pooled = _at_levels(_pool_block, (features,), rows, columns)
    return _unflatten(pooled, rows)


def _unflatten(pooled: Array, rows: _Cover) -> Array:
    num_bins = rows.level.shape[-1]
    return pooled.reshape(*rows.level.shape[:2], num_bins, num_bins, -1)


def _pool_fwd(features: Array, rows: _Cover, columns: _Cover):
    pooled, winner = _at_levels(_pool_block_fwd, (features,), rows, columns)
    return _unflatten(pooled, rows), (features, winner, rows, columns)


def _pool_bwd(residuals, grad: Array):
    features, winner, rows, columns = residuals
    grad = grad.reshape(winner.shape)
    return _at_levels(_pool_block_vjp, (features, winner, grad), rows, columns), None, None


_pool.defvjp(_pool_fwd, _pool_bwd)
