"""Multiple instance self-training: of the best proposals of a class, all that lie apart are instances."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from wsod_jax.mining.assign import Mined, assign_proposals, fill_slots, positive_classes
from wsod_jax.ops.boxes import pairwise_iou
from wsod_jax.ops.masked import masked_top_k


def mine(
    scores: Float[Array, "r c"],
    boxes: Float[Array, "r 4"],
    mask: Bool[Array, " r"],
    labels: Int[Array, " c"],
    *,
    top_fraction: float = 0.15,
    overlap_thr: ArrayLike = 0.2,
    fg_iou_thr: ArrayLike = 0.5,
    ignore_iou_thr: ArrayLike = 0.0,
    max_classes: int,
    max_boxes: int = 64,
) -> Mined:
    """Mine several boxes per positive class of one image and label all proposals by them.

    Of the n real proposals the floor(`top_fraction` n) best of a class, at least one, are ranked by
    score. A proposal of this list is an instance if its IoU with *every* better-ranked one, instances or
    not, is < `overlap_thr`; so the best one always is. Instances are weighted by their own scores.
    Classes do not see each other: two may mine the same proposal, which then belongs to the lower one.

    Args:
      scores: [r, c] source scores of the stage before: in [0, 1], no background column.
      boxes: [r, 4] xyxy in pixels.
      mask: [r] True = real proposal; masked rows may hold anything.
      labels: [c] 1 present, 0 absent, -1 unknown; only 1 is mined.
      top_fraction: share of the proposals that is looked at, in (0, 1].
      overlap_thr: IoU < this is apart (exclusive).
      fg_iou_thr: IoU >= this takes the label (inclusive).
      ignore_iou_thr: IoU < this gets weight 0; 0 ignores nothing.
      max_classes: static maximum of positive classes; further ones are left out and counted.
      max_boxes: static maximum of instances per class; further ones are left out and counted.

    Returns:
      `Mined` with `max_boxes` slots per class, by descending score. No positive class, or no real
      proposal: all weights 0.

    Raises:
      ValueError: `top_fraction` outside (0, 1].
    Ties: lowest index ranks first.   Gradient: none (stop_gradient).
    Cost: O((top_fraction r)^2) memory per class slot.
    Source: Ren et al. 2020, arXiv:2004.04725, algorithm 1; as in the released code, except that small
    images keep their best proposal, where that code keeps none of fewer than seven.
    """
    if not 0.0 < top_fraction <= 1.0:
        raise ValueError(f"top_fraction is {top_fraction}; it must lie in (0, 1]")
    scores, boxes = jax.lax.stop_gradient((scores.astype(jnp.float32), boxes))
    scores = jnp.where(mask[:, None], scores, 0.0)
    classes, num_overflow = positive_classes(labels, max_classes)
    list_size = max(1, math.floor(top_fraction * mask.shape[0] + 1e-6))
    num_top = jnp.floor(top_fraction * jnp.sum(mask) + 1e-6)  # 1e-6: float32 must not lose a box
    in_list = jnp.arange(list_size) < jnp.maximum(num_top, 1)

    def mine_class(c: Array) -> tuple[Array, ...]:
        score, index, valid = masked_top_k(scores[:, c], mask, list_size)
        listed = valid & in_list & (c >= 0)
        near = pairwise_iou(boxes[index], boxes[index]) >= overlap_thr  # [l, l]
        instance = listed & ~jnp.any(jnp.tril(near, -1), axis=1)
        slot = jnp.where(instance, jnp.cumsum(instance) - 1, max_boxes)
        lost = jnp.maximum(jnp.sum(instance) - max_boxes, 0)
        chosen = jnp.full(max_boxes, -1, jnp.int32).at[slot].set(index, mode="drop")
        return chosen, jnp.zeros(max_boxes).at[slot].set(score, mode="drop"), lost

    chosen, weights, lost = jax.vmap(mine_class)(classes)  # [m, n], [m, n], [m]
    pseudo = fill_slots(
        boxes,
        index=chosen.reshape(-1),
        classes=jnp.repeat(classes, max_boxes),
        scores=weights.reshape(-1),
        is_core=jnp.tile(jnp.arange(max_boxes) == 0, max_classes),
        mask=(chosen >= 0).reshape(-1),
    )
    targets = assign_proposals(
        pseudo, scores, boxes, mask, fg_iou_thr=fg_iou_thr, ignore_iou_thr=ignore_iou_thr
    )
    return Mined(targets, pseudo, num_overflow + jnp.sum(lost))
