"""Greedy non-maximum suppression without a sequential loop over boxes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from wsod_jax.ops.boxes import pairwise_iou


def nms_mask(
    boxes: Float[Array, "n 4"],
    scores: Float[Array, " n"],
    mask: Bool[Array, " n"],
    *,
    iou_thr: ArrayLike,
    groups: Int[Array, " n"] | None = None,
) -> Bool[Array, " n"]:
    """Return which boxes greedy non-maximum suppression keeps.

    Greedy NMS walks the boxes in descending score and keeps one unless a kept one before it overlaps
    it by IoU > `iou_thr`. With boxes in that order and `S[j, i]` true where i < j and
    IoU(i, j) > `iou_thr`, its answer is the one solution of

        keep[j] = not any_i (S[j, i] and keep[i]),

    because row j depends on earlier rows only. Each sweep of that equation, starting from "keep all", fixes at
    least one more row, so the loop ends after as many sweeps as the longest chain of boxes that suppress each
    other: a handful in practice, instead of n steps.

    Args:
      boxes: [n, 4] xyxy in pixels.
      scores: [n] finite.
      mask: [n] True = real. Masked boxes are neither kept nor suppress.
      iou_thr: boxes overlapping a kept one by IoU > this are suppressed; IoU == `iou_thr` survives.
      groups: [n] boxes suppress only boxes of the same group (class); `None` is one group.

    Returns:
      [n] bool, in the order given.

    Ties: equal scores rank by index, lowest first.   Gradient: none.   Cost: O(n^2) memory.
    """
    order = jnp.argsort(jnp.where(mask, -scores.astype(jnp.float32), jnp.inf), stable=True)
    rank = jnp.arange(boxes.shape[0])
    overlap = pairwise_iou(boxes[order], boxes[order]) > iou_thr
    if groups is not None:
        overlap &= groups[order][:, None] == groups[order][None, :]
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


def greedy_nms(boxes: np.ndarray, *, iou_thr: float, limit: int | None = None) -> np.ndarray:
    """Return the rows that greedy NMS keeps of boxes in descending score; NumPy, any number of boxes.

    Args:
      boxes: [n, 4] xyxy in pixels, the best first.
      iou_thr: as in `nms_mask`.
      limit: the most boxes to keep; `None` for all.

    Returns:
      [k] int64, ascending.

    Cost: O(n k) time, O(n) memory.
    """
    boxes = np.asarray(boxes, np.float64)
    kept, left = [], np.arange(len(boxes))
    while len(left) and (limit is None or len(kept) < limit):
        kept.append(left[0])
        overlap = pairwise_iou(boxes[left[:1]], boxes[left[1:]])[0]
        left = left[1:][overlap <= iou_thr]
    return np.array(kept, np.int64)
