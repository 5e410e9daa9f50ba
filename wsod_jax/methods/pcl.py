"""PCL: proposal cluster learning (Tang et al., TPAMI 2018), on OICR's refinement loop.

For every positive class, k-means on the scores selects the highest cluster of proposals; on the graph that joins those
with IoU > 0.4, centers are chosen greedily by degree (`Pcl.mine`). A cluster n is a center with its IoU >= 0.5
neighbors M_n. The loss treats it as one bag, and background proposals one by one (`cluster_loss`):

    L_k = -(1/R) [ Σ_bg w_r log x_{0,r} + Σ_n S_n log( (1/|M_n|) Σ_{r∈M_n} x_{c_n,r} ) ],   S_n = Σ_{r∈M_n} w_r.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float

from wsod_jax.methods.assign import Mined, fill_slots, positive_classes
from wsod_jax.methods.base import RefinementMethod, log_likelihood
from wsod_jax.ops.boxes import pairwise_iou
from wsod_jax.ops.kmeans import top_cluster
from wsod_jax.ops.masked import masked_top_k
from wsod_jax.options import COUNT, SHARE
from wsod_jax.types import PseudoBoxes, RefineTargets, Source

NUM_LEFT = 5  # the search for centers ends when at most this many proposals are left


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pcl(RefinementMethod):
    """PCL.

    Attributes:
      num_kmeans_clusters: k of the k-means on scores.
      graph_iou_thr: proposals with IoU > this are joined by an edge (exclusive).
      max_centers: at most this many clusters per class, those of the highest scores.
    """

    num_kmeans_clusters: Annotated[int, COUNT] = 3
    graph_iou_thr: Annotated[float, SHARE] = 0.4
    max_centers: Annotated[int, COUNT] = 5

    paper: ClassVar[str] = "Tang et al. 2018 (PCL)"

    def mine(self, source: Source, step: jax.Array) -> Mined:
        """Mine the cluster centers of each positive class of one image and label all proposals by them.

        For the classes c with y_c = 1 in ascending order:
        1. k-means with `num_kmeans_clusters` clusters on the scores of the proposals in the pool; the cluster with
           the highest mean is selected (`top_cluster`).
        2. Its proposals with IoU > `graph_iou_thr` are joined (each with itself too). The one of highest degree
           becomes a center, scored by the best of its neighbors, and is removed with them; this repeats until at
           most five are left, as released. The `max_centers` best-scored centers stay (`find_centers`).
        3. These are removed from the pool before the next class. A class is skipped if the pool is empty.
        Each proposal then takes label and weight of the center that it overlaps most (`assign_proposals`).

        Args:
          source: of one image and stage.
          step: not used.

        Returns:
          `Mined` with `max_centers` slots per class, by descending score, of which the first is the seed. No
          positive class, or no real proposal: all weights 0.

        Ties: of equal degrees the last index wins, of equal center scores the first.
        Gradient: none.
        Cost: O(r^2) bytes for the graph, shared by the stages unless they regress boxes.
        Source: Tang et al. 2018 (PCL), arXiv:1807.03342, section 3; constants as in the released code, whose
        k-means starts at random and may end in a local optimum.
        """
        del step
        count, max_centers = source.mask.shape[0], self.max_centers
        classes, num_overflow = positive_classes(source.labels, self.max_classes)

        def graph(boxes: Array) -> Array:
            return (pairwise_iou(boxes, boxes) > self.graph_iou_thr) | jnp.eye(count, dtype=bool)

        shared = graph(source.boxes) if source.boxes.ndim == 2 else None  # [r, r]

        def mine_class(pool: Array, c: Array) -> tuple[Array, tuple[Array, Array, Array]]:
            scores = source.scores[:, c]
            joined = graph(source.boxes_of(c)) if shared is None else shared
            top = top_cluster(scores, pool & (c >= 0), num_clusters=self.num_kmeans_clusters)
            center_scores, is_center = find_centers(scores, joined, top)
            score, index, valid = masked_top_k(center_scores, is_center, max_centers)
            pool = pool.at[jnp.where(valid, index, count)].set(False, mode="drop")
            return pool, (index, score, valid)

        _, (index, score, valid) = jax.lax.scan(mine_class, source.mask, classes)  # [m, n] each
        index, slot_classes = index.reshape(-1), jnp.repeat(classes, max_centers)
        pseudo = fill_slots(
            source.boxes_at(index, slot_classes),
            index=index,
            classes=slot_classes,
            scores=score.reshape(-1),
            is_seed=jnp.tile(jnp.arange(max_centers) == 0, self.max_classes),
            mask=valid.reshape(-1),
        )
        return Mined(self.assign(pseudo, source), pseudo, num_overflow)

    def stage_loss(
        self, logits: Float[Array, "r k"], mined: Mined, mask: Bool[Array, " r"]
    ) -> Float[Array, ""]:
        """Return L_k of one image."""
        return cluster_loss(logits, mined.targets, mined.pseudo, mask)


def find_centers(
    scores: Float[Array, " r"], joined: Bool[Array, "r r"], is_node: Bool[Array, " r"]
) -> tuple[Float[Array, " r"], Bool[Array, " r"]]:
    """Return the centers of a graph of proposals, and the centers' scores.

    Args:
      scores: [r].
      joined: [r, r] symmetric, True on the diagonal.
      is_node: [r] True = node of the graph.

    Returns:
      center_scores: [r] the best score among a center's neighbors, itself included; else 0.
      is_center: [r].

    Ties: of equal degrees the last index wins.   Cost: O(r) for each node.
    """
    last = scores.shape[0] - 1

    def neighbors_among(nodes: Array) -> Array:
        (index,) = jnp.nonzero(nodes, size=scores.shape[0])
        degree = jnp.zeros(scores.shape[0], jnp.int32)
        return jax.lax.fori_loop(0, jnp.sum(nodes), lambda n, d: d + joined[index[n]], degree)

    def unfinished(state: tuple[Array, ...]) -> Array:
        left, _, _, is_center = state
        return jnp.any(left) & ((jnp.sum(left) > NUM_LEFT) | ~jnp.any(is_center))

    def add_center(state: tuple[Array, ...]) -> tuple[Array, ...]:
        left, degree, center_scores, is_center = state
        center = last - jnp.argmax(jnp.where(left, degree, 0)[::-1])
        taken = joined[center] & left
        best = jnp.max(scores, where=taken, initial=0.0)
        degree = degree - neighbors_among(taken)
        center_scores = center_scores.at[center].set(best)
        return left & ~taken, degree, center_scores, is_center.at[center].set(True)

    start = (is_node, neighbors_among(is_node), jnp.zeros_like(scores), jnp.zeros_like(is_node))
    _, _, center_scores, is_center = jax.lax.while_loop(unfinished, add_center, start)
    return center_scores, is_center


def cluster_loss(
    logits: Float[Array, "r k"],
    targets: RefineTargets,
    pseudo: PseudoBoxes,
    mask: Bool[Array, " r"],
) -> Float[Array, ""]:
    """Return PCL's loss: each cluster of proposals is classified as one bag, background proposals one by one.

        L = - 1/R [ sum_{r: y_r = 0} w_r log x_{0,r}
                    + sum_n S_n log( 1/|M_n| sum_{r in M_n} x_{y_n, r} ) ],   S_n = sum_{r in M_n} w_r,

    where M_n are the foreground proposals assigned to pseudo box n and R is the number of real proposals.
    The mean over a cluster is taken in the log domain, so it needs no clamp, and tiny probabilities keep
    their gradient. Clusters without members add nothing.

    Args:
      logits: [r, k] of the head being trained, background first; masked rows may hold anything.
      targets: mined labels, weights and cluster slots.
      pseudo: the mined boxes; only their number of slots is used.
      mask: [r] True = real proposal.

    Returns:
      [] float32. 0 if all weights are 0.

    Gradient: to `logits` only; -S_n / (R |M_n| mean_n) for the probability of each member.
    Source: Tang et al. 2018 (PCL), arXiv:1807.03342, section 3. The released code clamps at 1e-12.
    """
    targets = jax.lax.stop_gradient(targets)
    num_slots = pseudo.mask.shape[0]
    weights = jnp.where(mask, targets.weights, 0.0)
    log_probs = log_likelihood(logits, targets, mask)  # [r]
    member = mask & (targets.labels > 0)
    background = jnp.sum(jnp.where(member, 0.0, weights) * log_probs)

    slot = jnp.where(member, targets.matched_idx, num_slots)  # background: a last, unused segment
    peak = jax.ops.segment_max(jax.lax.stop_gradient(log_probs), slot, num_slots + 1)
    peak = jnp.where(jnp.isfinite(peak), peak, 0.0)
    size = jax.ops.segment_sum(member.astype(jnp.float32), slot, num_slots + 1)
    total = jax.ops.segment_sum(jnp.exp(log_probs - peak[slot]), slot, num_slots + 1)
    used = size > 0
    log_mean = peak + jnp.log(jnp.where(used, total / jnp.maximum(size, 1.0), 1.0))
    weight = jax.ops.segment_sum(weights, slot, num_slots + 1)
    clusters = jnp.sum(jnp.where(used, weight * log_mean, 0.0))
    return -(background + clusters) / jnp.maximum(jnp.sum(mask), 1)
