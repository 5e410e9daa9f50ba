"""Greedy non-maximum suppression without a sequential loop over boxes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from wsod_jax.ops.boxes import pairwise_iou
from wsod_jax.ops.masked import masked_top_k


def nms_mask(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    mask: Bool[Array, " n"],
    *,
    iou_thr: ArrayLike,
) -> Bool[Array, " n"]:
    """Return which boxes greedy non-maximum suppression keeps.

    Greedy NMS walks the boxes in descending score and keeps one unless a kept one before it overlaps
    it by IoU > `iou_thr`. With boxes in that order and `S[j, i]` true where i < j and
    IoU(i, j) > `iou_thr`, its answer is the one solution of

        keep[j] = not any_i (S[j, i] and keep[i]),

    because row j depends on earlier rows only. Sweeping that equation from "keep all" settles at
    least one more row each time, so the loop ends, after as many sweeps as the longest chain of boxes
    that decide about each other: a handful in practice, where walking takes n steps.

    Args:
      boxes: [n, 4] xyxy in pixels.
      scores: [n] finite.
      mask: [n] True = real. Masked boxes are neither kept nor suppress.
      iou_thr: boxes overlapping a kept one by IoU > this are suppressed; IoU == `iou_thr` survives.

    Returns:
      [n] bool, in the order given.

    Ties: equal scores rank by index, lowest first.   Gradient: none.   Cost: O(n^2) memory.
    """
    order = jnp.argsort(jnp.where(mask, -scores.astype(jnp.float32), jnp.inf), stable=True)
    rank = jnp.arange(boxes.shape[0])
    overlap = pairwise_iou(boxes[order], boxes[order]) > iou_thr
    suppresses = overlap & (rank[None, :] < rank[:, None])  # [n, n], column suppresses row
    real = mask[order]

    def unsettled(state: tuple[Array, Array]) -> Array:
        return jnp.any(state[0] != state[1])

    def sweep(state: tuple[Array, Array]) -> tuple[Array, Array]:
        _, keep = state
        return keep, real & ~jnp.any(suppresses & keep[None, :], axis=1)

    start = (jnp.zeros_like(real), real)
    _, keep = jax.lax.while_loop(unsettled, sweep, start)
    return jnp.zeros_like(mask).at[order].set(keep, unique_indices=True)


def class_nms(
    boxes: Float[Array, "r 4"],
    scores: Float[Array, "r c"],
    mask: Bool[Array, " r"],
    *,
    iou_thr: ArrayLike,
    top_k: int,
) -> tuple[Int[Array, "c k"], Bool[Array, "c k"], Float[Array, "c k"]]:
    """Take each class's `top_k` boxes by score, then suppress overlaps within the class.

    Args:
      boxes: [r, 4] xyxy in pixels, shared by the classes.
      scores: [r, c] finite.
      mask: [r] True = real.
      iou_thr: boxes overlapping a kept one by IoU > this are suppressed.
      top_k: slots per class; may exceed `r`.

    Returns:
      index: [c, k] int32, the box in each slot, in descending score.
      keep: [c, k] bool, False for suppressed boxes and empty slots.
      scores: [c, k] score of each slot, 0 in empty ones.

    Ties: equal scores rank by index, lowest first.   Cost: O(c k^2) memory.
    """

    def one_class(class_scores: Array) -> tuple[Array, Array, Array]:
        top_scores, index, valid = masked_top_k(class_scores, mask, top_k)
        keep = nms_mask(boxes[index], top_scores, valid, iou_thr=iou_thr)
        return index, keep, top_scores

    return jax.vmap(one_class, in_axes=1)(scores)
