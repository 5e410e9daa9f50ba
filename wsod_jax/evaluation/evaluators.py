"""Evaluators of boxes and masks: each takes one image after the other, and computes a family of numbers.

An evaluator says what it needs of predictions (`needs`) and reads of annotations (`reads`). Those of maps, label maps
and image scores are in `image_evaluators`. Drawing is not done here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np

from wsod_jax.evaluation.metrics.average_precision import (
    MASK_IOU_THRS,
    ApMode,
    evaluate_detections,
)
from wsod_jax.evaluation.metrics.best_overlap import average_best_overlap
from wsod_jax.evaluation.metrics.coco_metrics import coco_ap
from wsod_jax.evaluation.metrics.corloc import box_quality, class_quality, corloc, corloc_any
from wsod_jax.evaluation.metrics.tables import (
    DetectionTable,
    GroundTruth,
    ImageObjects,
    Region,
    Rle,
)
from wsod_jax.evaluation.report import Evaluation
from wsod_jax.ops.masks import mask_to_rle
from wsod_jax.types import ImageResult

Reads = Literal["labels", "boxes", "masks", "semantic"]
Found = tuple[np.ndarray, np.ndarray, np.ndarray]  # boxes [n, 4], scores [n] and classes [n]
_NONE = np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)


@dataclass(frozen=True)
class Annotation:
    """What is known of one image.

    Attributes:
      labels: [c] int32, 1 present, 0 absent, -1 not counted: unknown, or present as difficult objects alone.
      objects: its boxes, where they are known.
      instances: reads its masks, `label_map` its label map, where there are any.
    """

    labels: np.ndarray
    objects: ImageObjects | None = None
    instances: Callable[[], Any] | None = None
    label_map: Callable[[], np.ndarray] | None = None


class Evaluator(Protocol):
    """A family of numbers.

    Attributes:
      needs: outputs of a method, one of which an image's result must have.
      reads: what of annotations is read.
    """

    needs: frozenset[str]
    reads: frozenset[Reads]

    def update(self, result: ImageResult, annotation: Annotation) -> None:
        """Take in the next image. A result without any output is of an image that could not be read."""

    def compute(self) -> Evaluation:
        """Return the numbers of all images."""


@dataclass
class _OfRegions:
    """Base of evaluators that compare boxes or masks of a whole set; subclasses read `detections` and `truth`.

    Attributes:
      num_classes: c.
      region: what is compared.
    """

    num_classes: int
    region: Region = "boxes"
    num_left_out: int = field(default=0, init=False)
    num_without: int = field(default=0, init=False)
    _results: list[Found] = field(default_factory=list, init=False)
    _masks: list[Rle] = field(default_factory=list, init=False)
    _objects: list[Any] = field(default_factory=list, init=False)
    _labels: list[np.ndarray] = field(default_factory=list, init=False)

    @property
    def needs(self) -> frozenset[str]:
        """Outputs that are compared."""
        return frozenset({"masks"} if self.region == "masks" else {"boxes", "maps"})

    @property
    def reads(self) -> frozenset[Reads]:
        """What they are compared with."""
        return frozenset({self.region})

    def update(self, result: ImageResult, annotation: Annotation) -> None:
        """Keep the regions of one image; one without annotated masks is left out where masks are compared."""
        if self.region == "masks" and annotation.instances is None:
            self.num_left_out += 1
            return
        self._results.append(self.boxes_of(result, annotation))
        self._labels.append(annotation.labels)
        if self.region == "boxes":
            self._objects.append(annotation.objects)
            return
        self._masks += [mask_to_rle(mask, result.size) for mask in result.masks or ()]
        instances = annotation.instances()
        self.num_without += instances.num_without
        self._objects.append((result.size, instances))

    def boxes_of(self, result: ImageResult, annotation: Annotation) -> Found:
        """Return the boxes of one image to compare."""
        if result.boxes is None:
            return _NONE
        return result.boxes, result.scores, result.classes

    @property
    def detections(self) -> DetectionTable:
        """The boxes of all images, with their masks where these are compared."""
        table = DetectionTable.from_images(self._results, num_classes=self.num_classes)
        if self.region == "boxes":
            return table
        return dataclasses.replace(table, masks=tuple(self._masks))

    @property
    def truth(self) -> GroundTruth:
        """The objects of all images."""
        if self.region == "boxes":
            return GroundTruth.from_annotations(self._objects, num_classes=self.num_classes)
        return GroundTruth.from_instances(self._objects, num_classes=self.num_classes)


@dataclass
class BoxAp(_OfRegions):
    """Average precision in the manner of PASCAL VOC; IoU > 0.75 is always measured too.

    Attributes:
      iou_thrs: thresholds, the headline first.
      ap_mode: see `average_precision`.
    """

    iou_thrs: tuple[float, ...] = (0.5,)
    ap_mode: ApMode = "11point"

    def compute(self) -> Evaluation:
        """Return AP at the first threshold, at 0.75, and the mean over several."""
        thrs = tuple(dict.fromkeys((*self.iou_thrs, 0.75)))
        metrics = evaluate_detections(
            self.detections, self.truth, iou_thrs=thrs, ap_mode=self.ap_mode
        )
        asked = metrics.ap[:, : len(self.iou_thrs)]
        shares = {f"AP{round(100 * self.iou_thrs[0])}": metrics.ap[:, 0]}
        shares["AP75"] = metrics.ap[:, thrs.index(0.75)]
        found = Evaluation(detail=metrics)
        if len(self.iou_thrs) > 1:
            percent = [round(100 * thr) for thr in self.iou_thrs]
            shares[f"AP{min(percent)}:{max(percent)}"] = asked.mean(axis=1)
            means = metrics.mean_ap.tolist()
            found.iou_sweep = {f"{thr:.2f}": m for thr, m in zip(thrs, means, strict=True)}
        for name, values in shares.items():
            found.add_share(name, values, mean=f"m{name}")
        found.counts = {
            "objects": metrics.num_objects,
            "difficult": metrics.num_difficult,
            "detections": metrics.num_detections,
            "hits": metrics.hits[:, 0],
        }
        found.without("an object that counts", metrics.num_objects == 0, f"m{next(iter(shares))}")
        found.notes.append(
            f"AP is `{self.ap_mode}`; AP{round(100 * thrs[0])} counts a hit where IoU > {thrs[0]:.2f}. "
            f"{metrics.num_images} images, {int(metrics.num_objects.sum())} objects, and "
            f"{int(metrics.num_difficult.sum())} difficult ones that count neither way."
        )
        return found


@dataclass
class MaskAp(_OfRegions):
    """Average precision of instance masks (AP^r, area rule), AP by size, and average best overlap.

    Attributes:
      iou_thrs: thresholds; a hit needs IoU > threshold.
    """

    region: Region = "masks"
    iou_thrs: tuple[float, ...] = MASK_IOU_THRS

    def compute(self) -> Evaluation:
        """Return "mask AP50" and so on, "mask AP small" and so on by COCO's rule, and "ABO"."""
        found, truth = self.detections, self.truth
        metrics = evaluate_detections(
            found, truth, iou_thrs=self.iou_thrs, ap_mode="area", region="masks"
        )
        evaluation = Evaluation(detail=metrics)
        if self.num_left_out:
            evaluation.notes.append(
                f"masks are not annotated in {self.num_left_out} images, which mask AP leaves out"
            )
        if self.num_without:
            evaluation.notes.append(
                f"{self.num_without} annotated objects have no mask, and mask AP leaves them out"
            )
        for t, thr in enumerate(self.iou_thrs):
            evaluation.add_share(f"mask AP{round(100 * thr)}", metrics.ap[:, t])
        evaluation.add_share("ABO", average_best_overlap(found, truth, region="masks").abo)
        summary = coco_ap(found, truth, region="masks").summary
        evaluation.overall = {
            f"mask AP {size}": summary[f"AP_{size}"] for size in ("small", "medium", "large")
        }
        evaluation.counts = {"masks": metrics.num_detections, "instances": metrics.num_objects}
        evaluation.without("an instance that counts", metrics.num_objects == 0, "mask AP")
        return evaluation


class CocoAp(_OfRegions):
    """COCO's twelve numbers of boxes or masks."""

    def compute(self) -> Evaluation:
        """Return them as "COCO AP" and so on, or "COCO mask AP"."""
        summary = coco_ap(self.detections, self.truth, region=self.region).summary
        prefix = "COCO" if self.region == "boxes" else "COCO mask"
        return Evaluation(overall={f"{prefix} {name}": value for name, value in summary.items()})


@dataclass
class CorLoc(_OfRegions):
    """Correct localization: the best box of every class that an image contains; of maps, also any component's box.

    Attributes:
      include_difficult: difficult objects count as hits and in the denominator.
    """

    include_difficult: bool = True
    _components: list[Found] = field(default_factory=list, init=False)
    _has_maps: bool = field(default=False, init=False)

    def boxes_of(self, result: ImageResult, annotation: Annotation) -> Found:
        """Return the best box of each class that the image contains or is labeled with."""
        present = np.unique(
            np.append(annotation.objects.classes, np.flatnonzero(annotation.labels == 1))
        )
        if result.maps is not None:
            self._has_maps = True
            self._components.append(_of_classes(result.maps.components, present))
            return _of_classes(result.maps.tightest, present)
        self._components.append(_NONE)
        if result.boxes is None:
            return _NONE
        best = np.unique(result.classes, return_index=True)  # scores descend
        rows = best[1][np.isin(best[0], present)]
        return result.boxes[rows], result.scores[rows], result.classes[rows]

    def compute(self) -> Evaluation:
        """Return CorLoc, and how large the best boxes are relative to the objects."""
        best, truth = self.detections, self.truth
        metrics = corloc(best, truth, include_difficult=self.include_difficult)
        found = Evaluation(counts={"images": metrics.num_images}, detail=metrics)
        found.add_share("CorLoc", metrics.corloc)
        found.without("an image", metrics.num_images == 0, "CorLoc")
        if self._has_maps:
            boxes = DetectionTable.from_images(self._components, num_classes=self.num_classes)
            several = corloc_any(boxes, truth, include_difficult=self.include_difficult)
            found.add_share("CorLoc any", several.corloc)
        else:
            labeled = np.stack(self._labels)[best.image_index, best.classes] == 1
            ratio = box_quality(best.take(labeled), truth).size_ratio
            found.numbers["top box size ratio"] = ratio
        return found


def _of_classes(read: Callable[[int], tuple], classes: Sequence[int]) -> Found:
    """Return what is read of several classes."""
    found = [_NONE]
    for c in classes:
        boxes, scores = read(int(c))
        found.append((boxes, scores, np.full(len(scores), c)))
    return tuple(map(np.concatenate, zip(*found, strict=True)))


@dataclass
class PseudoBoxes(_OfRegions):
    """What pseudo boxes are worth as training targets, class by class.

    Attributes:
      iou_thr: a box is right if its IoU with an object of its class exceeds this.
    """

    iou_thr: float = 0.5

    def compute(self) -> Evaluation:
        """Return precision, recall, average best overlap and size, difficult objects included."""
        boxes, truth = self.detections, self.truth
        quality = class_quality(boxes, truth, iou_thr=self.iou_thr)
        counts = {"boxes": quality.num_boxes, "objects": quality.num_objects}
        found = Evaluation(counts=counts, detail=quality)
        for name in ("precision", "recall", "ABO"):
            found.add_share(name, getattr(quality, name.lower()))
        found.add_share("size ratio", quality.size_ratio)
        found.numbers["boxes per image"] = len(boxes) / max(boxes.num_images, 1)
        found.without("a box", quality.num_boxes == 0, "precision")
        found.without("an object", quality.num_objects == 0, "recall")
        return found


def evaluation_labels(labels: np.ndarray, objects: ImageObjects | None) -> np.ndarray:
    """Return the labels that image-level metrics count: classes that are only difficult in an image do not.

    Args:
      labels: [c] as training has them.
      objects: of the image; `None` where they are not known, and the labels are taken as they are.

    Returns:
      [c] int32: 1 with an object that counts, -1 with difficult ones alone, else 0; -1 stays for what is unknown.
    """
    labels = np.array(labels, np.int32)
    if objects is None:
        return labels
    found = np.where(labels < 0, labels, 0)
    found[objects.classes[objects.difficult]] = -1
    found[objects.classes[~objects.difficult]] = 1
    return found
