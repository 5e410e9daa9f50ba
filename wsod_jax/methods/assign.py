"""Shared parts of miners: an image's positive classes, slots of pseudo boxes, assignment of proposals to them."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from wsod_jax.ops.boxes import pairwise_iou
from wsod_jax.types import PseudoBoxes, RefineTargets


class Mined(NamedTuple):
    """A miner's result for one image, without gradient.

    Attributes:
      targets: supervision of every proposal.
      pseudo: the mined boxes, class ascending; within a class in the miner's order.
      num_overflow: [] int32, positive classes and pseudo boxes without a slot. If above 0, the miner's static maxima
        are too small for this image.
    """

    targets: RefineTargets
    pseudo: PseudoBoxes
    num_overflow: Array


def positive_classes(
    labels: Int[Array, " c"], max_classes: int
) -> tuple[Int[Array, " m"], Int[Array, ""]]:
    """Return the classes that an image is labeled with, ascending, and how many do not fit.

    Args:
      labels: [c] 1 present, 0 absent, -1 unknown; only 1 counts.
      max_classes: number of slots `m`.

    Returns:
      classes: [m] int32, -1 in empty slots, which are last.
      num_overflow: [] int32, positive classes beyond `m` (the highest ones are omitted).
    """
    (classes,) = jnp.nonzero(labels > 0, size=max_classes, fill_value=-1)
    num_positive = jnp.sum(labels > 0, dtype=jnp.int32)
    return classes.astype(jnp.int32), jnp.maximum(num_positive - max_classes, 0)


def fill_slots(
    boxes: Float[Array, "g 4"],
    index: Int[Array, " g"],
    classes: Int[Array, " g"],
    scores: Float[Array, " g"],
    is_seed: Bool[Array, " g"],
    mask: Bool[Array, " g"],
) -> PseudoBoxes:
    """Return pseudo boxes with every field 0 in empty slots.

    Args:
      boxes: [g, 4] the box in each slot.
      index: [g] the mined proposal.
      classes: [g] its foreground class.
      scores: [g] its source score.
      is_seed: [g] True for a class's top box.
      mask: [g] True where the slot is used.
    """
    return PseudoBoxes(
        boxes=jnp.where(mask[:, None], boxes, 0.0),
        classes=jnp.where(mask, classes, 0).astype(jnp.int32),
        scores=jnp.where(mask, scores, 0.0),
        index=jnp.where(mask, index, 0).astype(jnp.int32),
        is_seed=is_seed & mask,
        mask=mask,
    )


def assign_proposals(
    pseudo: PseudoBoxes,
    scores: Float[Array, "r c"],
    boxes: Float[Array, "r 4"],
    mask: Bool[Array, " r"],
    *,
    iou_thrs: tuple[ArrayLike, ArrayLike],
    ignore_iou_thr: ArrayLike,
    labels_neighbors: Bool[Array, " g"] | None = None,
) -> RefineTargets:
    """Give every proposal the label and the weight of the pseudo box that it overlaps most.

    With pseudo boxes q of class c_q and score s_q, proposal j is matched to g(j) = argmax_q IoU(p_j, q) and weighted
    w_j = s_g(j). Its label is c_g(j) + 1 if IoU >= foreground threshold and either g(j) labels its neighbors or p_j is
    itself a pseudo box; else 0 (background).

    Args:
      pseudo: [g] slots; empty ones are never assigned.
      scores: [r, c] source scores, before any row was removed.
      boxes: [r, 4] proposals.
      mask: [r] True = real proposal.
      iou_thrs: (background, foreground): IoU >= foreground is foreground (inclusive); background <= IoU <
        foreground gets weight 0.
      ignore_iou_thr: IoU < this gets weight 0; 0 ignores nothing.
      labels_neighbors: [g] whether neighbors of the box take its label; all do by default.

    Returns:
      The targets of each proposal. Masked proposals, and all proposals of an image without pseudo boxes, have label 0,
      weight 0 and `matched_idx` -1. `is_pseudo_box` is True if g(j) is p_j itself and p_j is foreground.

    Ties: the first slot wins, so a proposal that overlaps no pseudo box is matched to the first one.
    Cost: O(r) memory; time only for used slots.
    Source: Tang et al. 2017 (OICR), section 3.
    """
    assigned, overlap = _closest(pseudo, boxes)
    real = mask & (assigned >= 0)
    background_thr, foreground_thr = iou_thrs
    foreground = real & (overlap >= foreground_thr)
    between = (overlap >= background_thr) & (overlap < foreground_thr)
    if labels_neighbors is not None:
        foreground &= labels_neighbors[assigned] | is_pseudo(pseudo, mask.shape[0])
    counts = real & (overlap >= ignore_iou_thr) & ~between
    weights = jnp.where(counts, pseudo.scores[assigned], 0.0)
    classes = pseudo.classes[assigned]
    label_scores = jnp.take_along_axis(scores, classes[:, None], axis=1)[:, 0]
    return RefineTargets(
        labels=jnp.where(foreground, classes + 1, 0).astype(jnp.int32),
        weights=weights,
        matched_idx=jnp.where(real, assigned, -1).astype(jnp.int32),
        is_pseudo_box=foreground & (pseudo.index[assigned] == jnp.arange(mask.shape[0])),
        source_scores=jnp.where(foreground, label_scores, weights),
    )


def _closest(
    pseudo: PseudoBoxes, boxes: Float[Array, "r 4"]
) -> tuple[Int[Array, " r"], Float[Array, " r"]]:
    """Return the slot that each box overlaps most (ties: the first) and their IoU; -1 without slots.

    Most slots are empty in most images: a loop over the used ones is cheaper than the [r, g] matrix and its argmax.
    """
    (used,) = jnp.nonzero(pseudo.mask, size=pseudo.mask.shape[0], fill_value=0)

    def visit(n: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
        slot = used[n].astype(jnp.int32)
        iou = pairwise_iou(pseudo.boxes[slot][None], boxes)[0]
        closer = iou > best[1]
        return jnp.where(closer, slot, best[0]), jnp.where(closer, iou, best[1])

    start = (jnp.full(boxes.shape[0], -1, jnp.int32), jnp.full(boxes.shape[0], -1.0))
    return jax.lax.fori_loop(0, jnp.sum(pseudo.mask), visit, start)


def is_pseudo(pseudo: PseudoBoxes, num_proposals: int) -> Bool[Array, " r"]:
    """Return which of the `num_proposals` proposals are pseudo boxes of any class."""
    outside = jnp.where(pseudo.mask, pseudo.index, num_proposals)
    return jnp.zeros(num_proposals, bool).at[outside].set(True, mode="drop")
