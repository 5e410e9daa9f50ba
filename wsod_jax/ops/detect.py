"""From candidate boxes with scores per class to detections: threshold, NMS in each class, the best of all classes."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float

from wsod_jax.ops.masked import masked_top_k
from wsod_jax.ops.nms import nms_mask
from wsod_jax.types import Detections


@functools.partial(jax.jit, static_argnames="top_k")
def detect(
    boxes: Float[Array, "..."],
    scores: Float[Array, "*b m c"],
    mask: Bool[Array, "*b m"],
    *,
    score_thr: ArrayLike,
    iou_thr: ArrayLike,
    top_k: int,
) -> Detections:
    """Return the best detections of an image, or of each image of a batch, over all classes.

    A candidate (row, class) takes part if its row is real and its score > `score_thr`. Within each class greedy
    non-maximum suppression removes those that overlap a better one that was kept by IoU > `iou_thr` (`nms_mask`). Of
    what is left in all classes the `top_k` best are returned, in descending score. One row may be detected as several
    classes.

    Args:
      boxes: [m, 4] xyxy in pixels, shared by the classes, or [m, c, 4], each class its own; [b, ...] for a batch.
      scores: [m, c] or [b, m, c] of any range. A candidate whose score is NaN takes no part.
      mask: [m] or [b, m] True = real; masked rows may hold anything.
      score_thr: scores > this take part (exclusive); -inf lets all.
      iou_thr: boxes overlapping a kept one of their class by IoU > this are suppressed; IoU == `iou_thr` survives.
      top_k: n, slots of the result; may exceed m c. Static.

    Returns:
      `Detections` with n slots, without its leading axis for one image. Empty slots are last, masked, and all 0.

    Raises:
      ValueError: boxes of a shape that fits neither form, or fewer than one slot.
    Ties: of equal scores the lower row comes first, then the lower class; within a class the lower row suppresses.
    Gradient: none (stop_gradient).
    Cost: one class at a time (`lax.map`), so O(m^2) bytes for each image of the batch however many classes there are.
    """
    rows, num_classes = scores.shape[-2:]
    shared, per_class = (*scores.shape[:-1], 4), (*scores.shape, 4)
    if boxes.shape not in (shared, per_class):
        raise ValueError(
            f"boxes have shape {boxes.shape} beside scores of {scores.shape}; they must be {shared}, shared by the "
            f"classes, or {per_class}, a box for each class"
        )
    if top_k < 1:
        raise ValueError(f"top_k is {top_k}; it must be at least 1")
    boxes, scores = jax.lax.stop_gradient((boxes, scores.astype(jnp.float32)))

    def one_image(boxes: Array, scores: Array, mask: Array) -> Detections:
        taking_part = mask[:, None] & (scores > score_thr)  # [m, c]
        ranked = jnp.where(taking_part, scores, 0.0)
        by_class = jnp.moveaxis(boxes, 1, 0) if boxes.ndim == 3 else None  # [c, m, 4]

        def one_class(of_class: tuple[Array, Array, Array | None]) -> Array:
            scores, mask, own = of_class
            return nms_mask(boxes if own is None else own, scores, mask, iou_thr=iou_thr)

        keep = jax.lax.map(one_class, (ranked.T, taking_part.T, by_class)).T  # [m, c]
        found, index, valid = masked_top_k(ranked.reshape(-1), keep.reshape(-1), top_k)
        row, classes = index // num_classes, index % num_classes
        chosen = boxes[row] if boxes.ndim == 2 else boxes[row, classes]
        chosen = jnp.where(valid[:, None], chosen, 0.0)
        return Detections(boxes=chosen, scores=found, classes=classes, mask=valid, row=row)

    if rows * num_classes == 0:
        return _none(scores.shape[:-2], top_k)
    return (
        one_image(boxes, scores, mask)
        if scores.ndim == 2
        else jax.vmap(one_image)(boxes, scores, mask)
    )


def _none(leading: tuple[int, ...], top_k: int) -> Detections:
    """Return empty slots, for images that cannot have a candidate."""
    slots = (*leading, top_k)
    index = jnp.zeros(slots, jnp.int32)
    return Detections(
        boxes=jnp.zeros((*slots, 4)),
        scores=jnp.zeros(slots),
        classes=index,
        mask=jnp.zeros(slots, bool),
        row=index,
    )
