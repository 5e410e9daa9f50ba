"""Online instance classifier refinement: the top-scoring proposal of each class teaches those around it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from wsod_jax.mining.assign import Mined, assign_proposals, fill_slots, positive_classes
from wsod_jax.ops.masked import masked_argmax


def mine(
    scores: Float[Array, "r c"],
    boxes: Float[Array, "r 4"],
    mask: Bool[Array, " r"],
    labels: Int[Array, " c"],
    *,
    fg_iou_thr: ArrayLike = 0.5,
    ignore_iou_thr: ArrayLike = 0.0,
    max_classes: int,
) -> Mined:
    """Mine one box per positive class of one image and label all proposals by it.

    For the classes c with y_c = 1 in ascending order,

        j_c = argmax_r x_cr,

    after which proposal j_c is out of the race: its scores are 0 for every later class. Each proposal
    then takes label and weight of the j_c it overlaps most (`assign_proposals`).

    Args:
      scores: [r, c] source scores of the stage before: in [0, 1], no background column.
      boxes: [r, 4] xyxy in pixels.
      mask: [r] True = real proposal; masked rows may hold anything.
      labels: [c] 1 present, 0 absent, -1 unknown; only 1 is mined.
      fg_iou_thr: IoU >= this takes the label (inclusive).
      ignore_iou_thr: IoU < this gets weight 0. 0, the default, ignores nothing; 0.1 is the later trick
        of PCL's authors.
      max_classes: static maximum of positive classes; further ones are left out and counted.

    Returns:
      `Mined` with one slot per class. No positive class, or no real proposal: all weights 0.

    Ties: lowest index wins.   Gradient: none (stop_gradient).   Cost: O(r max_classes).
    Source: Tang et al. 2017, arXiv:1704.00138, algorithm 1; removal of rows as in the released code.
    """
    scores, boxes = jax.lax.stop_gradient((scores.astype(jnp.float32), boxes))
    scores = jnp.where(mask[:, None], scores, 0.0)
    classes, num_overflow = positive_classes(labels, max_classes)

    def mine_class(removed: Array, c: Array) -> tuple[Array, tuple[Array, Array]]:
        index, score = masked_argmax(jnp.where(removed, 0.0, scores[:, c]), mask)
        return removed.at[index].set(True), (index, score)

    # Empty slots (class -1) come last: what they remove, nobody misses.
    _, (index, score) = jax.lax.scan(mine_class, jnp.zeros_like(mask), classes)
    used = (classes >= 0) & jnp.any(mask)
    pseudo = fill_slots(boxes, index, classes, score, is_core=used, mask=used)
    targets = assign_proposals(
        pseudo, scores, boxes, mask, fg_iou_thr=fg_iou_thr, ignore_iou_thr=ignore_iou_thr
    )
    return Mined(targets, pseudo, num_overflow)
