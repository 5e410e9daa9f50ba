"""Exact one-dimensional k-means, by dynamic programming over the sorted values."""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

BLOCK = 64  # intervals within blocks of this many values are tabulated; longer ones are joined from parts of blocks


def top_cluster(
    values: Float[Array, " n"], mask: Bool[Array, " n"], *, num_clusters: int
) -> Bool[Array, " n"]:
    """Return the members of the highest cluster of the optimal k-means clustering of numbers.

    The optimal clustering minimizes the inertia, the sum of squared distances from the clusters' means. Its clusters
    are intervals of the sorted values x_0 >= x_1 >= ..., so with C(j, i) the inertia of x_j .. x_i the least inertia of
    x_0 .. x_i in q clusters is

        E_1[i] = C(0, i),   E_q[i] = min_j E_{q-1}[j - 1] + C(j, i),

    and backtracking from the last value finds where the clusters begin. Inertias are sums of terms >= 0 (a value or a
    set that joins another), never differences of sums of squares, which would cancel in float32.

    Args:
      values: [n] finite where real.
      mask: [n] True = takes part; masked entries may hold anything.
      num_clusters: k, at least 1. Static.

    Returns:
      [n] bool; not empty unless the mask is. Equal values share a cluster, so there are fewer than k clusters if there
      are fewer distinct values.

    Raises:
      ValueError: `num_clusters` < 1.
    Ties: of equally good clusterings (to float32 rounding) the one whose lowest cluster is largest, then the next.
    Gradient: none.   Cost: k - 2 times n^2 / 2 evaluations of C; memory for n * `BLOCK` numbers.
    Source: Wang and Song 2011, Ckmeans.1d.dp.
    """
    if num_clusters < 1:
        raise ValueError(f"num_clusters is {num_clusters}; it must be at least 1")
    size = max(BLOCK, 1 << max(values.shape[0] - 1, 0).bit_length())  # a power of two
    count = jnp.sum(mask)
    place = jnp.arange(size)
    ranked = -jnp.sort(jnp.where(mask, -values.astype(jnp.float32), jnp.inf))
    ranked = jnp.where(place < count, jnp.pad(ranked, (0, size - values.shape[0])), 0.0)
    may_begin = (place > 0) & (jnp.roll(ranked, 1) > ranked)

    def before(least: Array) -> Array:
        """Return the inertia of all clusters before one that begins at each place."""
        return jnp.where(may_begin, jnp.roll(least, 1), jnp.inf)

    least = [_inertia_from_first(ranked)]  # E_1, E_2, ...
    for _ in range(num_clusters - 2):
        least.append(_least_with_one_more(least[-1], before(least[-1]), ranked))
    last = jnp.maximum(count - 1, 0)
    for fewer in reversed(least[: num_clusters - 1]):
        inertia = before(fewer) + _inertia_to(ranked, last)
        inertia = jnp.where(place <= last, inertia, jnp.inf)
        begin = jnp.argmin(inertia)
        last = jnp.where(inertia[begin] <= fewer[last], begin - 1, last)
    return mask & (values >= ranked[last])


def _grow(offsets: Float[Array, "*b n"], count: Array) -> tuple[Array, Array]:
    """Return the means and inertias of growing sets of numbers.

    Args:
      offsets: [..., n] the number that joins minus the first of its set, which keeps float32 sums accurate.
      count: [..., n] size of the set with it; 1 where a set begins, and before.

    Returns:
      The sets' means minus their first numbers, and inertias, both [..., n].
    """
    means = jnp.cumsum(offsets, axis=-1) / count
    before = jnp.concatenate([jnp.zeros_like(means[..., :1]), means[..., :-1]], axis=-1)
    difference = offsets - before
    return means, jnp.cumsum(difference**2 * ((count - 1) / count), axis=-1)


def _inertia_from_first(values: Float[Array, " n"]) -> Float[Array, " n"]:
    """Return C(0, i) for every i."""
    return _grow(values - values[0], jnp.arange(1.0, values.shape[0] + 1))[1]


def _inertia_to(values: Float[Array, " n"], last: Int[Array, ""]) -> Float[Array, " n"]:
    """Return C(j, last) for every j up to `last`."""
    back = jnp.maximum(last - jnp.arange(values.shape[0]), 0)  # its own inverse
    return _inertia_from_first(values[back])[back]


def _least_with_one_more(
    least: Float[Array, " n"], before: Float[Array, " n"], values: Float[Array, " n"]
) -> Float[Array, " n"]:
    """Return E_q from E_{q-1}.

    Intervals within a block of `BLOCK` values are tabulated. Every longer one crosses the middle of exactly one block
    among those of 2, 4, 8, ... times `BLOCK` values: it joins a tail of the left half with a head of the right half,
    which are known for all places. The intervals of a block are an outer product, reduced as it is made.

    Args:
      least: E_{q-1}.
      before: E_{q-1}[j - 1] where a cluster may begin at j, else inf.
      values: n of them, a power of two, descending.
    """
    mean, inertia = _within_blocks(values.reshape(-1, BLOCK))  # [blocks, j, i]
    within = jnp.min(before.reshape(-1, BLOCK, 1) + inertia, axis=1)
    least = jnp.minimum(least, within.reshape(-1))  # the new cluster may be empty
    head = mean[:, 0], inertia[:, 0]  # of each block: its first value .. i
    tail = mean[:, :, -1], inertia[:, :, -1]  # i .. its last value
    length = BLOCK
    while length < values.shape[0]:
        place = jnp.arange(length, dtype=jnp.float32)[None]
        heads = tuple(x.reshape(-1, 2, length) for x in head)
        tails = tuple(x.reshape(-1, 2, length) for x in tail)
        left = length - place, *(x[:, 0] for x in tails)  # count, mean, inertia
        right = place + 1, *(x[:, 1] for x in heads)
        joined = _join([x[:, :, None] for x in left], [x[:, None] for x in right])[1]
        crossing = jnp.min(before.reshape(-1, 2, length)[:, 0, :, None] + joined, axis=1)
        halves = least.reshape(-1, 2, length)
        least = jnp.stack([halves[:, 0], jnp.minimum(halves[:, 1], crossing)], axis=1).reshape(-1)

        longer_heads = _join([x[:, :1] for x in left], right)
        longer_tails = _join(left, [x[:, -1:] for x in right])
        head = tuple(jnp.stack([x[:, 0], y], 1) for x, y in zip(heads, longer_heads, strict=True))
        tail = tuple(jnp.stack([y, x[:, 1]], 1) for x, y in zip(tails, longer_tails, strict=True))
        length *= 2
    return least


def _within_blocks(values: Float[Array, "b n"]) -> tuple[Array, Array]:
    """Return mean and inertia of the values j .. i of each block, [b, j, i]; where i < j, inf and j's own value."""
    place = jnp.arange(values.shape[1])
    count = (place[None] - place[:, None] + 1)[None]  # [1, j, i]
    offsets = jnp.where(count > 0, values[:, None] - values[:, :, None], 0.0)
    mean, inertia = _grow(offsets, jnp.maximum(count, 1).astype(jnp.float32))
    return values[:, :, None] + mean, jnp.where(count > 0, inertia, jnp.inf)


def _join(a: Sequence[Array], b: Sequence[Array]) -> tuple[Array, Array]:
    """Return mean and inertia of two sets together, each given by count, mean and inertia."""
    share = b[0] / (a[0] + b[0])
    difference = b[1] - a[1]
    return a[1] + difference * share, a[2] + b[2] + difference**2 * (a[0] * share)
