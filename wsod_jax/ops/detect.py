"""From candidate boxes with class scores to detections: threshold, NMS per class, top k of all classes."""

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

_PAIRS_AT_ONCE = 2**20  # IoUs of an image in memory at a time
_SLOTS_AT_ONCE = 2**11  # detections of an image up to which all pairs are compared in one matrix


@functools.partial(jax.jit, static_argnames=("top_k", "class_top_k"))
def detect(
    boxes: Float[Array, "..."],
    scores: Float[Array, "*b m c"],
    mask: Bool[Array, "*b m"],
    *,
    score_thr: ArrayLike,
    iou_thr: ArrayLike,
    top_k: int,
    class_top_k: int | None = None,
) -> Detections:
    """Return the best detections of an image, or of each image of a batch, over all classes.

    A candidate (row, class) takes part if its row is real, its score > `score_thr`, and it is among the `class_top_k`
    best of its class. Greedy non-maximum suppression with `iou_thr` runs per class (`nms_mask`). The `top_k` best
    survivors of all classes are returned, in descending score. One row may be detected as several classes.

    Args:
      boxes: [m, 4] xyxy in pixels, shared by the classes, or [m, c, 4], one per class; [b, ...] for a batch.
      scores: [m, c] or [b, m, c] of any range. A candidate whose score is NaN takes no part.
      mask: [m] or [b, m] True = real; masked rows may hold anything.
      score_thr: scores > this take part (exclusive); -inf for all.
      iou_thr: boxes overlapping a kept one of their class by IoU > this are suppressed; IoU == `iou_thr` survives.
      top_k: n, slots of the result; may exceed m c. Static.
      class_top_k: k, candidates of a class before NMS; `None` takes all m. Static.

    Returns:
      `Detections` with n slots, without its leading axis for one image. Empty slots are last, masked, and all 0.

    Raises:
      ValueError: boxes of a shape that fits neither form, or fewer than one slot.
    Ties: of equal scores the lower row comes first, then the lower class; within a class the lower row suppresses.
    Gradient: none (stop_gradient).
    Cost: O(c k^2) time; as many classes at a time as 2^20 IoUs allow, so O(max(k^2, 2^20)) memory for each image.
    """
    rows, num_classes = scores.shape[-2:]
    shared, per_class = (*scores.shape[:-1], 4), (*scores.shape, 4)
    if boxes.shape not in (shared, per_class):
        raise ValueError(
            f"boxes have shape {boxes.shape}, scores {scores.shape}; boxes must be {shared}, shared by the classes, or "
            f"{per_class}, one box per class"
        )
    if top_k < 1 or (class_top_k is not None and class_top_k < 1):
        raise ValueError(f"top_k is {top_k}, class_top_k {class_top_k}; each must be at least 1")
    if rows * num_classes == 0:
        return _none(scores.shape[:-2], top_k)
    boxes, scores = jax.lax.stop_gradient((boxes, scores.astype(jnp.float32)))
    count = rows if class_top_k is None else min(class_top_k, rows)

    def one_image(boxes: Array, scores: Array, mask: Array) -> Detections:
        taking_part = mask[:, None] & (scores > score_thr)  # [m, c]
        ranked = jnp.where(taking_part, scores, 0.0)
        by_class = jnp.moveaxis(boxes, 1, 0) if boxes.ndim == 3 else None  # [c, m, 4]

        def one_class(of_class: tuple[Array, Array, Array | None]) -> tuple[Array, ...]:
            scores, mask, class_boxes = of_class
            best, row, valid = masked_top_k(scores, mask, count)
            candidates = (boxes if class_boxes is None else class_boxes)[row]  # [k, 4]
            return best, row, candidates, nms_mask(candidates, best, valid, iou_thr=iou_thr)

        best, row, candidates, keep = jax.lax.map(  # each [c, k, ...]
            one_class,
            (ranked.T, taking_part.T, by_class),
            batch_size=min(num_classes, max(1, _PAIRS_AT_ONCE // count**2)),
        )
        classes = jnp.broadcast_to(jnp.arange(num_classes)[:, None], row.shape)
        return best_of(candidates, best, classes, row, keep, top_k)

    if scores.ndim == 2:
        return one_image(boxes, scores, mask)
    return jax.vmap(one_image)(boxes, scores, mask)


@functools.partial(jax.jit, static_argnames=("top_k", "num_classes", "class_top_k"))
def detect_again(
    detections: Detections, *, iou_thr: ArrayLike, top_k: int, num_classes: int, class_top_k: int
) -> Detections:
    """Run NMS on the concatenated detections of several views of one image.

    Args:
      detections: [n] or [b, n] slots, in any order; of equal scores the lower `row`, distinct for each, comes first.
      iou_thr: as in `detect`.
      top_k: slots of the result. Static.
      num_classes: c. Static.
      class_top_k: k, bound on detections per class, such as `class_top_k` of `detect` times views. Static.

    Returns:
      `Detections` with `top_k` slots; `row` as given.

    Gradient: none.
    Cost: for each image O(n^2) memory and time; above 2048 slots class by class, O(k^2) memory and O(c k^2) time.
    """
    count = min(class_top_k, detections.scores.shape[-1])

    def one_image(image: Detections) -> Detections:
        order = jnp.argsort(image.row, stable=True)
        image = jax.tree.map(lambda x: x[order], image)
        boxes, scores, classes, row = image.boxes, image.scores, image.classes, image.row
        if len(scores) <= _SLOTS_AT_ONCE:
            keep = nms_mask(boxes, scores, image.mask, iou_thr=iou_thr, groups=classes)
            return best_of(boxes, scores, classes, row, keep, top_k)

        def one_class(c: Array) -> tuple[Array, Array, Array]:
            best, index, valid = masked_top_k(scores, image.mask & (classes == c), count)
            return best, index, nms_mask(boxes[index], best, valid, iou_thr=iou_thr)

        best, index, keep = jax.lax.map(one_class, jnp.arange(num_classes))  # each [c, k]
        return best_of(boxes[index], best, classes[index], row[index], keep, top_k)

    return one_image(detections) if detections.scores.ndim == 1 else jax.vmap(one_image)(detections)


def best_of(
    boxes: Float[Array, "*n 4"],
    scores: Float[Array, "*n"],
    classes: Array,
    row: Array,
    keep: Bool[Array, "*n"],
    top_k: int,
) -> Detections:
    """Return the `top_k` best of one image's kept candidates; of equal scores the lower row, then class, is first."""
    scores, keep = scores.reshape(-1), keep.reshape(-1)
    falling = jnp.where(keep, -jnp.where(scores == 0, 0.0, scores), jnp.inf)
    keys = (falling, row.reshape(-1), classes.reshape(-1), jnp.arange(scores.size))
    _, row, classes, index = (
        jnp.pad(x[:top_k], (0, max(0, top_k - x.size))) for x in jax.lax.sort(keys, num_keys=3)
    )
    valid = jnp.arange(top_k) < jnp.sum(keep)
    return Detections(
        boxes=jnp.where(valid[:, None], boxes.reshape(-1, 4)[index], 0.0),
        scores=jnp.where(valid, scores[index], 0.0),
        classes=jnp.where(valid, classes, 0),
        mask=valid,
        row=jnp.where(valid, row, 0),
    )


def _none(leading: tuple[int, ...], top_k: int) -> Detections:
    """Return empty slots, for images without candidates."""
    slots = (*leading, top_k)
    index = jnp.zeros(slots, jnp.int32)
    return Detections(
        boxes=jnp.zeros((*slots, 4)),
        scores=jnp.zeros(slots),
        classes=index,
        mask=jnp.zeros(slots, bool),
        row=index,
    )
