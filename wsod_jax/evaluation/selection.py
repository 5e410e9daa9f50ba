"""From merged candidates to detections: top boxes per class, data-set thresholds, NMS."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import jax
import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.evaluation.inference import MergedImage
from wsod_jax.evaluation.metrics.tables import DetectionTable
from wsod_jax.ops.nms import class_nms


@dataclass(frozen=True)
class Results:
    """What is kept of an image set after selection.

    Attributes:
      detections: after NMS, images in ascending index, classes ascending, scores descending.
      top_boxes: [n, c, 4] float32 the best box of every image and class, for CorLoc.
      top_scores: [n, c] float32 its score.
      top_valid: [n, c] bool, False for images without a candidate.
      image_scores: [n, c] float32 image-level scores, NaN for images that were not predicted; or `None`.
      score_thrs: [c] float32 the adaptive thresholds, -inf where none was applied.
      predicted: [n] bool, False for images that never came, such as files that cannot be read.
      counts: what the input met on the way, by name, see `data.assembling.COUNTS`; empty if nobody counted.
    """

    detections: DetectionTable
    top_boxes: np.ndarray
    top_scores: np.ndarray
    top_valid: np.ndarray
    image_scores: np.ndarray | None
    score_thrs: np.ndarray
    predicted: np.ndarray
    counts: dict[str, int] = field(default_factory=dict)


@partial(jax.jit, static_argnames="top_k")
def suppress(boxes, scores, mask, iou_thr, *, top_k: int):
    """Apply `ops.nms.class_nms` to one image's candidates, compiled once per number of rows."""
    return class_nms(boxes, scores, mask, iou_thr=iou_thr, top_k=top_k)


def adaptive_thresholds(scores: list[np.ndarray], limit: int) -> np.ndarray:
    """Return per class the score that fewer than `limit` candidates of the data set exceed.

    Args:
      scores: per class, [m] scores of the candidates of all images.
      limit: candidates to collect per class, usually 40 times the number of images.
    Returns:
      [c] float32: the `limit`-th highest score of a class that has more than `limit`, else -inf. Candidates must
      be higher, so ties with it fall.

    Source: released Fast R-CNN and OICR code, whose running heap ends at this value.
    """
    thrs = np.full(len(scores), -np.inf, np.float32)
    for c, of_class in enumerate(scores):
        if len(of_class) > limit:
            thrs[c] = np.partition(of_class, len(of_class) - limit)[len(of_class) - limit]
    return thrs


@dataclass
class _Kept:
    """What selection remembers of the images seen so far: lists with one entry per image."""

    image_index: list[int] = field(default_factory=list)
    classes: list[np.ndarray] = field(default_factory=list)  # [m] survivors of NMS
    scores: list[np.ndarray] = field(default_factory=list)
    boxes: list[np.ndarray] = field(default_factory=list)
    candidates: list[np.ndarray] = field(default_factory=list)  # [c, k'] scores before NMS
    top_boxes: list[np.ndarray] = field(default_factory=list)  # [c, 4]

    def add(self, image: MergedImage, selected: tuple[jax.Array, ...]) -> None:
        """Remember one image; `selected` is what `suppress` returned for it."""
        index, keep, scores = map(np.asarray, selected)  # [c, k], waits for the device
        classes, slots = np.nonzero(keep)
        real = min(int(image.mask.sum()), index.shape[1])
        self.image_index.append(image.image_index)
        self.classes.append(classes.astype(np.int32))
        self.scores.append(scores[classes, slots])
        self.boxes.append(image.boxes[index[classes, slots]])
        self.candidates.append(scores[:, :real])
        self.top_boxes.append(image.boxes[index[:, 0]])


def _suppress_all(
    merged: Iterable[MergedImage], kept: _Kept, *, nms_thr: float, top_k: int
) -> dict[int, np.ndarray | None]:
    """Fill `kept` from `merged`; return the image-level scores by image. NMS runs one image ahead."""
    image_scores: dict[int, np.ndarray | None] = {}
    waiting = None
    for image in merged:
        if image.image_index in image_scores:
            raise DataError(f"image {image.image_index} came twice; each must be predicted once")
        image_scores[image.image_index] = image.image_scores
        if image.mask is None or not image.mask.any():
            continue
        if not (np.isfinite(image.boxes).all() and np.isfinite(image.scores).all()):
            raise DataError(
                f"boxes or scores of image {image.image_index} are not finite; the checkpoint may have "
                "diverged: look at its loss, or evaluate an earlier step"
            )
        selected = suppress(image.boxes, image.scores, image.mask, np.float32(nms_thr), top_k=top_k)
        if waiting is not None:
            kept.add(*waiting)
        waiting = image, selected
    if waiting is not None:
        kept.add(*waiting)
    return image_scores


def select(
    merged: Iterable[MergedImage],
    *,
    num_images: int,
    num_classes: int,
    top_k: int = 100,
    nms_thr: float = 0.3,
    score_thr: float | None = None,
    average_per_image: int | None = None,
) -> Results:
    """Select the detections of a whole image set: best candidates per class, thresholds, NMS.

    Per image and class the `top_k` best boxes enter. Of these a class keeps, over the data set, about
    `average_per_image` per image, counted before NMS as in the released code. Greedy NMS follows. A box's fate depends
    on higher boxes only, so a threshold before or after NMS leaves the same boxes, and one pass suffices.

    Args:
      merged: images in any order, each at most once; missing ones have no detections.
      num_images: images of the set.
      num_classes: foreground classes.
      top_k: candidates per image and class.
      nms_thr: a box is removed by a better one of its class with IoU > this.
      score_thr: keep scores > this; `None` keeps all. The top boxes for CorLoc ignore it.
      average_per_image: candidates kept per image and class on average, see `adaptive_thresholds`; the released
        OICR code has 40. `None` keeps all.
    Returns:
      `Results`.
    Raises:
      DataError: an image comes twice or has candidates that are not finite.
    Ties: the lower row wins.   Cost: one compilation per distinct number of rows; 4 bytes per candidate score.
    Source: released OICR code for the defaults and for `average_per_image`.
    """
    kept = _Kept()
    image_scores = _suppress_all(merged, kept, nms_thr=nms_thr, top_k=top_k)
    thrs = np.full(num_classes, -np.inf, np.float32)
    if average_per_image is not None and kept.candidates:
        per_class = np.concatenate(kept.candidates, axis=1)  # [c, candidates of all images]
        thrs = adaptive_thresholds(list(per_class), average_per_image * num_images)
    detections = _detection_table(kept, num_images, num_classes)
    above = detections.scores > thrs[detections.classes]
    if score_thr is not None:
        above &= detections.scores > score_thr

    top_boxes = np.zeros((num_images, num_classes, 4), np.float32)
    top_scores = np.zeros((num_images, num_classes), np.float32)
    top_valid = np.zeros((num_images, num_classes), bool)
    for image, boxes, scores in zip(kept.image_index, kept.top_boxes, kept.candidates, strict=True):
        top_boxes[image], top_scores[image], top_valid[image] = boxes, scores[:, 0], True
    return Results(
        detections=detections.take(above),
        top_boxes=top_boxes,
        top_scores=top_scores,
        top_valid=top_valid,
        image_scores=_image_score_table(image_scores, num_images, num_classes),
        score_thrs=thrs,
        predicted=np.isin(np.arange(num_images), list(image_scores)),
    )


def _detection_table(kept: _Kept, num_images: int, num_classes: int) -> DetectionTable:
    """Return all survivors of NMS, images ascending."""
    order = np.argsort(kept.image_index)
    parts = [kept.classes[i] for i in order]
    counts = [len(part) for part in parts]
    images = np.asarray(kept.image_index, np.int32)[order]
    return DetectionTable(
        image_index=np.repeat(images, counts),
        classes=np.concatenate([np.zeros(0, np.int32), *parts]),
        scores=np.concatenate([np.zeros(0, np.float32), *(kept.scores[i] for i in order)]),
        boxes=np.concatenate([np.zeros((0, 4), np.float32), *(kept.boxes[i] for i in order)]),
        num_images=num_images,
        num_classes=num_classes,
    )


def _image_score_table(
    image_scores: dict[int, np.ndarray | None], num_images: int, num_classes: int
) -> np.ndarray | None:
    """Return [n, c] image-level scores, NaN for images that were not predicted; `None` if there are none."""
    if not image_scores or any(scores is None for scores in image_scores.values()):
        return None
    table = np.full((num_images, num_classes), np.nan, np.float32)
    for index, scores in image_scores.items():
        table[index] = scores
    return table
