"""Proposal cluster learning: the densest spots among the best-scoring proposals of a class teach their clusters."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from wsod_jax.mining.assign import Mined, assign_proposals, fill_slots, positive_classes
from wsod_jax.ops.boxes import pairwise_iou
from wsod_jax.ops.masked import masked_top_k

NUM_LEFT = 5  # the search for centres ends when no more proposals than this are left


def mine(
    scores: Float[Array, "r c"],
    boxes: Float[Array, "r 4"],
    mask: Bool[Array, " r"],
    labels: Int[Array, " c"],
    *,
    fg_iou_thr: ArrayLike = 0.5,
    ignore_iou_thr: ArrayLike = 0.0,
    graph_iou_thr: ArrayLike = 0.4,
    num_kmeans_clusters: int = 3,
    max_centres: int = 5,
    max_classes: int,
) -> Mined:
    """Mine the cluster centres of each positive class of one image and label all proposals by them.

    For the classes c with y_c = 1 in ascending order:
    1. k-means with `num_kmeans_clusters` clusters on the scores of the proposals still in the pool; those of
       the cluster with the highest mean are kept (`top_scoring`).
    2. Kept proposals with IoU > `graph_iou_thr` are joined (each with itself too). The one of highest
       degree becomes a centre, scored by the best of its neighbours, and is taken away with them; and so
       on until at most five are left. The `max_centres` best-scored centres stay (`find_centres`).
    3. These leave the pool before the next class. A class that finds the pool empty is skipped.
    Each proposal then takes label and weight of the centre it overlaps most (`assign_proposals`).

    Args:
      scores: [r, c] source scores of the stage before: in [0, 1], no background column.
      boxes: [r, 4] xyxy in pixels.
      mask: [r] True = real proposal; masked rows may hold anything.
      labels: [c] 1 present, 0 absent, -1 unknown; only 1 is mined.
      fg_iou_thr: IoU >= this takes the label (inclusive).
      ignore_iou_thr: IoU < this gets weight 0. 0, the default, ignores nothing; with 0.1 the authors
        report 47.2 instead of 43.5 mAP.
      graph_iou_thr: IoU > this joins (exclusive).
      num_kmeans_clusters: k of k-means.
      max_centres: per class.
      max_classes: static maximum of positive classes; further ones are left out and counted.

    Returns:
      `Mined` with `max_centres` slots per class, by descending score, of which the first is the core. No
      positive class, or no real proposal: all weights 0.

    Ties: of equal degrees the last index wins, of equal centre scores the first.
    Gradient: none (stop_gradient).
    Cost: O(r^2) bytes for the graph, shared by the stages if they are batched with `in_axes=None` boxes.
    Source: Tang et al. 2018 (PCL), arXiv:1807.03342, section 3; constants as in the released code, whose
    k-means starts at random where this one starts evenly spaced.
    """
    scores, boxes = jax.lax.stop_gradient((scores.astype(jnp.float32), boxes))
    scores = jnp.where(mask[:, None], scores, 0.0)
    classes, num_overflow = positive_classes(labels, max_classes)
    joined = pairwise_iou(boxes, boxes) > graph_iou_thr
    joined = joined | jnp.eye(mask.shape[0], dtype=bool)  # [r, r]

    def mine_class(pool: Array, c: Array) -> tuple[Array, tuple[Array, Array, Array]]:
        pool_of_class = pool & (c >= 0)
        kept = top_scoring(scores[:, c], pool_of_class, num_clusters=num_kmeans_clusters)
        centre_scores, is_centre = find_centres(scores[:, c], joined, kept)
        score, index, valid = masked_top_k(centre_scores, is_centre, max_centres)
        pool = pool.at[jnp.where(valid, index, mask.shape[0])].set(False, mode="drop")
        return pool, (index, score, valid)

    _, (index, score, valid) = jax.lax.scan(mine_class, mask, classes)  # [m, n] each
    pseudo = fill_slots(
        boxes,
        index=index.reshape(-1),
        classes=jnp.repeat(classes, max_centres),
        scores=score.reshape(-1),
        is_core=jnp.tile(jnp.arange(max_centres) == 0, max_classes),
        mask=valid.reshape(-1),
    )
    targets = assign_proposals(
        pseudo, scores, boxes, mask, fg_iou_thr=fg_iou_thr, ignore_iou_thr=ignore_iou_thr
    )
    return Mined(targets, pseudo, num_overflow)


def top_scoring(
    scores: Float[Array, " r"],
    pool: Bool[Array, " r"],
    *,
    num_clusters: int = 3,
    max_iterations: int = 100,
) -> Bool[Array, " r"]:
    """Return the members of the highest cluster that k-means finds among the scores of the pool.

    Lloyd's iterations, until the means stand still, from means evenly spaced between the lowest and the
    highest score: one then starts among the few high scores that a detector gives. On skewed scores the
    highest cluster comes out close to that of the best clustering; from quantiles it came out up to
    nine times as large.

    Args:
      scores: [r].
      pool: [r] True = takes part.
      num_clusters: k.
      max_iterations: bound on the iterations; tens are usual.

    Returns:
      [r] bool; not empty unless the pool is. All of the pool where all scores are equal.

    Ties: a score halfway between two means belongs to the lower one; an empty cluster keeps its mean
    and cannot be chosen.
    """
    low = jnp.min(scores, where=pool, initial=jnp.inf)
    high = jnp.max(scores, where=pool, initial=-jnp.inf)
    low, high = jnp.where(jnp.any(pool), low, 0.0), jnp.where(jnp.any(pool), high, 0.0)
    spacing = jnp.linspace(0.0, 1.0, num_clusters)

    def clusters(means: Array) -> Array:
        nearest = jnp.argmin(jnp.abs(scores[:, None] - means[None, :]), axis=1)
        return pool[:, None] & (nearest[:, None] == jnp.arange(num_clusters)[None, :])  # [r, k]

    def moving(state: tuple[Array, Array, Array]) -> Array:
        means, before, n = state
        return jnp.any(means != before) & (n < max_iterations)

    def move(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        means, _, n = state
        member = clusters(means)
        size = jnp.sum(member, axis=0)
        total = jnp.sum(jnp.where(member, scores[:, None], 0.0), axis=0)
        return jnp.where(size > 0, total / jnp.maximum(size, 1), means), means, n + 1

    start = low + (high - low) * spacing
    means, _, _ = jax.lax.while_loop(moving, move, (start, start + 1.0, jnp.zeros((), jnp.int32)))
    member = clusters(means)
    top = jnp.argmax(jnp.where(jnp.any(member, axis=0), means, -jnp.inf))
    return member[:, top]


def find_centres(
    scores: Float[Array, " r"], joined: Bool[Array, "r r"], kept: Bool[Array, " r"]
) -> tuple[Float[Array, " r"], Bool[Array, " r"]]:
    """Return which proposals are centres of the graph on the kept ones, and the centres' scores.

    Args:
      scores: [r].
      joined: [r, r] symmetric, True on the diagonal.
      kept: [r] True = node of the graph.

    Returns:
      centre_scores: [r] the best score among a centre's neighbours, itself included; else 0.
      is_centre: [r].

    Ties: of equal degrees the last index wins.   Cost: O(r) for each kept proposal.
    """
    last = scores.shape[0] - 1

    def neighbours_among(nodes: Array) -> Array:
        (index,) = jnp.nonzero(nodes, size=scores.shape[0])
        degree = jnp.zeros(scores.shape[0], jnp.int32)
        return jax.lax.fori_loop(0, jnp.sum(nodes), lambda n, d: d + joined[index[n]], degree)

    def unfinished(state: tuple[Array, ...]) -> Array:
        left, _, _, is_centre = state
        begun = jnp.any(is_centre)
        return jnp.any(left) & ((jnp.sum(left) > NUM_LEFT) | ~begun)

    def add_centre(state: tuple[Array, ...]) -> tuple[Array, ...]:
        left, degree, centre_scores, is_centre = state
        centre = last - jnp.argmax(jnp.where(left, degree, 0)[::-1])
        taken = joined[centre] & left
        best = jnp.max(scores, where=taken, initial=0.0)
        degree = degree - neighbours_among(taken)  # each node is taken, and counted out, once
        centre_scores = centre_scores.at[centre].set(best)
        return left & ~taken, degree, centre_scores, is_centre.at[centre].set(True)

    start = (kept, neighbours_among(kept), jnp.zeros_like(scores), jnp.zeros_like(kept))
    _, _, centre_scores, is_centre = jax.lax.while_loop(unfinished, add_centre, start)
    return centre_scores, is_centre
