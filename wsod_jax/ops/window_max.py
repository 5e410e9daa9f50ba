"""Maxima of a feature map over many rectangles of cells, with gradients, by gathers alone.

Four windows whose sides are powers of two, one in each corner, cover a rectangle. The running maxima over all such
windows (the tables) are computed once; the maximum over any rectangle is the maximum of four table entries.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

TABLE_BYTES = 128 * 2**20  # limit of the tables of one block of channels


class Cover(NamedTuple):
    """How two windows cover each interval of cells along one axis.

    Attributes:
      level: [b, r, p] int32; the windows are `2**level` cells long, at most as long as the interval.
      first: [b, r, p] int32, start of the window that begins with the interval.
      last: [b, r, p] int32, start of the window that ends with the interval.
      filled: [b, r, p] bool, False for intervals without a cell (their other fields are 0).
    """

    level: Int[Array, "b r p"]
    first: Int[Array, "b r p"]
    last: Int[Array, "b r p"]
    filled: Bool[Array, "b r p"]


def cover_intervals(start: Int[Array, "b r p"], end: Int[Array, "b r p"]) -> Cover:
    """Cover intervals of cells with pairs of windows.

    Args:
      start: [b, r, p] first cell, at least 0.
      end: [b, r, p] the cell after the last, at most the size of the map.

    Returns:
      `Cover`; intervals with `end <= start` are not filled.
    """
    filled = end > start
    level = jnp.where(filled, 31 - jax.lax.clz(jnp.maximum(end - start, 1)), 0)
    last = jnp.where(filled, end - (1 << level), 0)
    return Cover(level, jnp.where(filled, start, 0), last, filled)


class Longest(NamedTuple):
    """The most cells that intervals have: static; it determines the number of compiled tables.

    Attributes:
      rows: cells of the longest vertical interval to expect, at least 1.
      columns: of the longest horizontal one.
      bounded: True promises that no interval is longer; longer ones give arbitrary results. False allows intervals up
        to the whole map: a second, larger program is compiled, and runs if any is longer.
    """

    rows: int
    columns: int
    bounded: bool


@functools.partial(jax.custom_vjp, nondiff_argnums=(3,))
def max_over_rectangles(
    features: Float[Array, "b h w d"], rows: Cover, columns: Cover, longest: Longest
) -> Float[Array, "b r p p d"]:
    """Return the maximum over every rectangle rows[.., i] x columns[.., j].

    Args:
      features: [b, h, w, d] finite.
      rows: p vertical intervals for each of r regions.
      columns: p horizontal intervals, likewise.
      longest: bounds on the intervals' lengths.

    Returns:
      [b, r, p, p, d] maxima; 0, and no gradient, where an interval is not filled.

    Ties: the gradient goes to the first maximum, rows before columns.   Gradient: to `features`.
    Cost: O(b h w d) operations for each of the log^2 tables, O(b r p^2 d) for the look-ups; blocks of
    channels limit the working memory of both passes to about four times `TABLE_BYTES`, plus the result.
    """
    pooled = _at_levels(_block_max, (features,), rows, columns, longest)
    return _unflatten(pooled, rows)


# ---------------------------------------------------------------------------------------------------
# Tables: [b, ly, lx, h, w, d], entry (ly, lx, y, x) is the maximum over the window of 2**ly rows and
# 2**lx columns that starts at (y, x). Windows that leave the map are shorter, and never looked up.


def _ahead(x: Array, step: int, axis: int, fill: float | int) -> Array:
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
    """Return, for each entry of the vertical tables, which row of its window first holds the maximum."""
    rows = [jnp.zeros(tables[0].shape, jnp.int16)]
    for level, table in enumerate(tables[:-1]):
        is_first = table >= _ahead(table, 2**level, axis, -jnp.inf)
        later = _ahead(rows[-1], 2**level, axis, 0) + jnp.int16(2**level)
        rows.append(jnp.where(is_first, rows[-1], later))
    return rows


def _corners(
    rows: Cover, columns: Cover, levels: tuple[int, int], size: tuple[int, int]
) -> list[Array]:
    """Return the positions in the flattened tables of the windows that cover each rectangle.

    Four [b, n] int32, n = r p p: top left, bottom left, top right, bottom right.
    """

    def index(y: Array, x: Array) -> Array:
        table = rows.level[..., :, None] * levels[1] + columns.level[..., None, :]
        cell = (table * size[0] + y[..., :, None]) * size[1] + x[..., None, :]  # [b, r, p, p]
        return cell.reshape(cell.shape[0], -1)

    corners = [index(y, x) for x in (columns.first, columns.last) for y in (rows.first, rows.last)]
    return jax.lax.optimization_barrier(corners)  # else XLA repeats this arithmetic per channel


def _filled(rows: Cover, columns: Cover) -> Array:
    """Return which rectangles have any cell, [b, n, 1]."""
    filled = rows.filled[..., :, None] & columns.filled[..., None, :]  # [b, r, p, p]
    return filled.reshape(filled.shape[0], -1, 1)


def _flat(tables: list[Array]) -> Array:
    """Stack ly tables of [b, lx, h, w, d] into [b, ly * lx * h * w, d]."""
    stacked = jnp.stack(tables, axis=1)
    # The barrier keeps XLA from computing the tables again for every entry that is looked up.
    return jax.lax.optimization_barrier(stacked.reshape(stacked.shape[0], -1, stacked.shape[-1]))


def _take(table: Array, index: Array) -> Array:
    return jax.vmap(lambda t, i: t.at[i].get(mode="promise_in_bounds"))(table, index)


def _add_at(table: Array, index: Array, rows: Array) -> Array:
    return jax.vmap(lambda t, i, x: t.at[i].add(x, mode="promise_in_bounds"))(table, index, rows)


def _tables(features: Array, levels: tuple[int, int]) -> tuple[list[Array], list[Array]]:
    """Return lx tables [b, h, w, d] over columns, and ly tables [b, lx, h, w, d] over both axes."""
    horizontal = _running_max(features, levels[1], axis=2)
    return horizontal, _running_max(jnp.stack(horizontal, axis=1), levels[0], axis=2)


def _block_max(features: Array, rows: Cover, columns: Cover, levels: tuple[int, int]) -> Array:
    """Return the maxima [b, n, d] over n = r p p rectangles of [b, h, w, d]."""
    _, tables = _tables(features, levels)
    table = _flat(tables)
    corners = _corners(rows, columns, levels, features.shape[1:3])
    maxima = functools.reduce(jnp.maximum, (_take(table, index) for index in corners))
    return jnp.where(_filled(rows, columns), maxima, 0)


def _block_max_fwd(
    features: Array, rows: Cover, columns: Cover, levels: tuple[int, int]
) -> tuple[Array, Array]:
    """Return the maxima as `_block_max`, and which corner's window (0..3) has the first of each (-1: no cell).

    Windows overlap, so several may have it. Of an upper and a lower window with equal maxima the upper has the first.
    Of a left and a right one it is the one whose maximum is in the earlier row, or the left one in the same row.
    """
    _, tables = _tables(features, levels)
    table, first_row = _flat(tables), _flat(_first_rows(tables, axis=2))
    corners = _corners(rows, columns, levels, features.shape[1:3])
    top_left, low_left, top_right, low_right = (_take(table, index) for index in corners)
    row_tl, row_ll, row_tr, row_lr = (_take(first_row, index) for index in corners)
    # The lower windows start `below` rows after the upper ones.
    below = (rows.last - rows.first).astype(jnp.int16)[..., None]
    below = jnp.broadcast_to(below, (*rows.level.shape, columns.level.shape[-1]))
    below = below.reshape(below.shape[0], -1, 1)  # [b, n, 1]
    left, right = jnp.maximum(top_left, low_left), jnp.maximum(top_right, low_right)
    row_left = jnp.where(top_left >= low_left, row_tl, row_ll + below)
    row_right = jnp.where(top_right >= low_right, row_tr, row_lr + below)
    is_left = (left > right) | ((left == right) & (row_left <= row_right))
    is_low = jnp.where(is_left, low_left > top_left, low_right > top_right)
    winner = jnp.where(is_left, 0, 2) + is_low
    filled = _filled(rows, columns)
    maxima = jnp.where(filled, jnp.maximum(left, right), 0)
    return maxima, jnp.where(filled, winner, -1).astype(jnp.int8)


def _block_max_vjp(
    features: Array,
    winner: Array,
    grad: Array,
    rows: Cover,
    columns: Cover,
    levels: tuple[int, int],
) -> Array:
    """Send gradients [b, n, d] of the maxima to the cells [b, h, w, d].

    Whole rows of channels are added to the tables' entries, each channel at the winning window; the gradients then
    descend the tables, rows first, which is the order of the first maximum.
    """
    batch, height, width, channels = features.shape
    horizontal, tables = _tables(features, levels)
    table_grad = jnp.zeros((batch, levels[0] * levels[1] * height * width, channels), jnp.float32)
    for corner, index in enumerate(_corners(rows, columns, levels, (height, width))):
        share = jnp.where(winner == corner, grad, 0).astype(jnp.float32)
        table_grad = _add_at(table_grad, index, share)
    table_grad = table_grad.reshape(batch, *levels, height, width, channels)
    grads = [table_grad[:, level] for level in range(levels[0])]
    columns_grad = _running_max_vjp(tables, grads, axis=2)  # [b, lx, h, w, d]
    grads = [columns_grad[:, level] for level in range(levels[1])]
    return _running_max_vjp(horizontal, grads, axis=2).astype(features.dtype)


# ---------------------------------------------------------------------------------------------------
# Whole maps: channel block by channel block, with as many levels of tables as the rectangles need.


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


def _at_levels(
    function: Callable, arrays: tuple[Array, ...], rows: Cover, columns: Cover, longest: Longest
):
    """Run `function` with as many table levels as the longest intervals need."""
    sizes = arrays[0].shape[1:3]
    lengths = (min(longest.rows, sizes[0]), min(longest.columns, sizes[1]))
    usual = tuple(n.bit_length() for n in lengths)
    full = tuple(n.bit_length() for n in sizes)

    def run(levels: tuple[int, int], arrays, rows, columns):
        block = functools.partial(function, rows=rows, columns=columns, levels=levels)
        return _by_channel_blocks(block, arrays, levels)

    if longest.bounded or usual == full:
        return run(usual, arrays, rows, columns)
    fits = jnp.all(rows.level < usual[0]) & jnp.all(columns.level < usual[1])
    branches = functools.partial(run, usual), functools.partial(run, full)
    return jax.lax.cond(fits, *branches, arrays, rows, columns)


def _unflatten(pooled: Array, rows: Cover) -> Array:
    """Turn [b, r p p, d] into [b, r, p, p, d]."""
    num_bins = rows.level.shape[-1]
    return pooled.reshape(*rows.level.shape[:2], num_bins, num_bins, pooled.shape[-1])


def _max_fwd(features: Array, rows: Cover, columns: Cover, longest: Longest):
    pooled, winner = _at_levels(_block_max_fwd, (features,), rows, columns, longest)
    return _unflatten(pooled, rows), (features, winner, rows, columns)


def _max_bwd(longest: Longest, residuals, grad: Array):
    features, winner, rows, columns = residuals
    arrays = features, winner, grad.reshape(winner.shape)
    return _at_levels(_block_max_vjp, arrays, rows, columns, longest), None, None


max_over_rectangles.defvjp(_max_fwd, _max_bwd)
