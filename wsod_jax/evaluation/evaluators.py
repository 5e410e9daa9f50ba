"""Evaluators: each takes one image's result and annotation after the other, and computes a family of numbers.

An evaluator says what it needs of predictions (`needs`) and reads of annotations (`reads`). Drawing is not done here.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from wsod_jax.evaluation.metrics import semantic
from wsod_jax.evaluation.metrics.average_precision import (
    MASK_IOU_THRS,
    ApMode,
    evaluate_detections,
)
from wsod_jax.evaluation.metrics.best_overlap import average_best_overlap
from wsod_jax.evaluation.metrics.classification import classification_ap
from wsod_jax.evaluation.metrics.coco_metrics import coco_ap
from wsod_jax.evaluation.metrics.corloc import box_quality, class_quality, corloc, corloc_any
from wsod_jax.evaluation.metrics.ilsvrc import (
    ILSVRC_GUESSES,
    known_class_error,
    localization_errors,
    ranked_classes,
)
from wsod_jax.evaluation.metrics.object_energy import EnergyMetrics, object_energy
from wsod_jax.evaluation.metrics.pointing import (
    difficult_subset,
    pointing_accuracy,
    pointing_with_prediction,
)
from wsod_jax.evaluation.metrics.tables import (
    DetectionTable,
    ImageObjects,
    Region,
    Rle,
    TruthTable,
)
from wsod_jax.evaluation.report import Evaluation
from wsod_jax.ops.masks import mask_to_rle
from wsod_jax.types import ImageResult

Reads = Literal["labels", "boxes", "masks", "semantic"]
OFF_THE_IMAGE = (-1e9, -1e9)  # the point of an image that could not be read: a miss


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
    _results: list[tuple[np.ndarray, ...]] = field(default_factory=list, init=False)
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
        self._objects.append((result.size, annotation.instances()))

    def boxes_of(
        self, result: ImageResult, annotation: Annotation
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return boxes [n, 4], scores [n] and classes [n] to compare."""
        if result.boxes is None:
            return np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)
        return result.boxes, result.scores, result.classes

    @property
    def detections(self) -> DetectionTable:
        """The boxes of all images, with their masks where these are compared."""
        table = DetectionTable.from_images(self._results, num_classes=self.num_classes)
        if self.region == "boxes":
            return table
        return dataclasses.replace(table, masks=tuple(self._masks))

    @property
    def truth(self) -> TruthTable:
        """The objects of all images."""
        if self.region == "boxes":
            return TruthTable.from_annotations(self._objects, num_classes=self.num_classes)
        return TruthTable.from_instances(self._objects, num_classes=self.num_classes)


@dataclass
class BoxAp(_OfRegions):
    """Average precision in the manner of PASCAL VOC; IoU > 0.75 always stands beside what is asked for.

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
            text = (
                f"masks are not annotated in {self.num_left_out} images, which mask AP leaves out"
            )
            evaluation.notes.append(text)
        for t, thr in enumerate(self.iou_thrs):
            evaluation.add_share(f"mask AP{round(100 * thr)}", metrics.ap[:, t])
        evaluation.add_share("ABO", average_best_overlap(found, truth, region="masks").abo)
        summary = coco_ap(found, truth, region="masks").summary
        evaluation.numbers = {
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
        return Evaluation(numbers={f"{prefix} {name}": value for name, value in summary.items()})


@dataclass
class CorLoc(_OfRegions):
    """Correct localization: the best box of every class that an image contains; of maps, also any component's box.

    Attributes:
      include_difficult: difficult objects count as hits and in the denominator.
    """

    include_difficult: bool = True
    _components: list[tuple[np.ndarray, ...]] = field(default_factory=list, init=False)
    _has_maps: bool = field(default=False, init=False)

    def boxes_of(
        self, result: ImageResult, annotation: Annotation
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return the best box of each class that the image contains or is labeled with."""
        present = np.unique(
            np.append(annotation.objects.classes, np.flatnonzero(annotation.labels == 1))
        )
        none = np.zeros((0, 4)), np.zeros(0), np.zeros(0, int)
        if result.maps is not None:
            self._has_maps = True
            self._components.append(_of_classes(result.maps.components, present))
            return _of_classes(result.maps.tightest, present)
        self._components.append(none)
        if result.boxes is None:
            return none
        first = [np.flatnonzero(result.classes == c)[:1] for c in present]  # scores descend
        rows = np.concatenate([np.zeros(0, int), *first])
        return result.boxes[rows], result.scores[rows], result.classes[rows]

    def compute(self) -> Evaluation:
        """Return CorLoc, and how large the best boxes are beside the objects."""
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


def _of_classes(read: Callable[[int], tuple], classes: Sequence[int]) -> tuple[np.ndarray, ...]:
    """Return boxes, scores and classes of several classes."""
    boxes, scores, found = [np.zeros((0, 4))], [np.zeros(0)], [np.zeros(0, int)]
    for c in classes:
        of_class = read(int(c))
        boxes.append(of_class[0])
        scores.append(of_class[1])
        found.append(np.full(len(of_class[1]), c))
    return np.concatenate(boxes), np.concatenate(scores), np.concatenate(found)


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


class MeanIou:
    """Mean IoU of label maps over the background and all classes; an image that was not read is all background."""

    needs: ClassVar[frozenset[str]] = frozenset({"semantic"})
    reads: ClassVar[frozenset[Reads]] = frozenset({"semantic"})

    def __init__(self, num_classes: int):
        self._pixels = semantic.MeanIou(num_classes)

    def update(self, result: ImageResult, annotation: Annotation) -> None:
        """Count the pixels of one image, if its label map is annotated."""
        if annotation.label_map is not None:
            truth = annotation.label_map()
            found = np.zeros_like(truth) if result.semantic is None else result.semantic
            self._pixels.add(found, truth)

    def compute(self) -> Evaluation:
        """Return the IoU of every class; "mIoU" counts the background too."""
        iou = self._pixels.iou
        found = Evaluation(detail=self._pixels)
        found.add_share("IoU", iou[1:], mean="IoU of classes")
        found.numbers = {"mIoU": self._pixels.mean, "IoU of background": float(iou[0])}
        return found


@dataclass
class Classification:
    """Average precision of every class as an image classifier; images that were not read do not count.

    Attributes:
      ap_mode: see `average_precision`.
    """

    ap_mode: ApMode = "11point"
    needs: ClassVar[frozenset[str]] = frozenset({"image_scores"})
    reads: ClassVar[frozenset[Reads]] = frozenset({"labels"})
    _scores: list[np.ndarray] = field(default_factory=list, init=False)
    _labels: list[np.ndarray] = field(default_factory=list, init=False)

    def update(self, result: ImageResult, annotation: Annotation) -> None:
        """Keep the scores of one image."""
        if result.image_scores is not None:
            self._scores.append(result.image_scores)
            self._labels.append(annotation.labels)

    def compute(self) -> Evaluation:
        """Return the image AP of every class; nothing where no label is known."""
        found = Evaluation()
        if not self._labels or (np.stack(self._labels) < 0).all():
            return found
        ap = classification_ap(np.stack(self._scores), np.stack(self._labels), ap_mode=self.ap_mode)
        found.add_share("image AP", ap, mean="image mAP")
        found.notes.append(f"image AP is `{self.ap_mode}`")
        return found


@dataclass
class Pointing:
    """Does the strongest response of a class lie on one of its objects?

    Attributes:
      tolerance_px: a point this close to an object's box is a hit, in pixels of the original image.
      prediction_px: the same where points are ranked by class scores.
      ap_mode: see `average_precision`.
    """

    num_classes: int
    tolerance_px: float = 15.0
    prediction_px: float = 18.0
    ap_mode: ApMode = "11point"
    needs: ClassVar[frozenset[str]] = frozenset({"maps"})
    reads: ClassVar[frozenset[Reads]] = frozenset({"boxes"})
    _points: list[np.ndarray] = field(default_factory=list, init=False)
    _scores: list[np.ndarray] = field(default_factory=list, init=False)
    _objects: list[ImageObjects] = field(default_factory=list, init=False)
    _sizes: list[tuple[int, int]] = field(default_factory=list, init=False)

    def update(self, result: ImageResult, annotation: Annotation) -> None:
        """Read the points of the classes that one image contains."""
        points = np.full((self.num_classes, 2), OFF_THE_IMAGE)
        if result.maps is not None:
            for c in np.unique(annotation.objects.classes):
                points[c] = self.point(result, int(c))
        self._points.append(points)
        scores = result.image_scores
        self._scores.append(np.zeros(self.num_classes) if scores is None else scores)
        self._objects.append(annotation.objects)
        self._sizes.append(result.size)

    def point(self, result: ImageResult, c: int) -> tuple[float, float]:
        """Return the point (x, y) of a class."""
        return result.maps.point(c)

    def compute(self) -> Evaluation:
        """Return pointing accuracy, that of small objects among others, and the AP of predicting and pointing."""
        truth = TruthTable.from_annotations(self._objects, num_classes=self.num_classes)
        points, scores = np.stack(self._points), np.stack(self._scores)
        difficult = difficult_subset(truth, np.array(self._sizes))
        found = Evaluation()
        for name, subset in (("pointing", None), ("pointing difficult", difficult)):
            metrics = pointing_accuracy(
                points, truth, tolerance_px=self.tolerance_px, subset=subset
            )
            found.add_share(name, metrics.accuracy)
        found.add_share(
            "pointing AP",
            pointing_with_prediction(
                points, scores, truth, tolerance_px=self.prediction_px, ap_mode=self.ap_mode
            ),
        )
        return found


@dataclass
class Energy:
    """Object Energy: which share of the proposal map lies on objects."""

    needs: ClassVar[frozenset[str]] = frozenset({"maps"})
    reads: ClassVar[frozenset[Reads]] = frozenset({"boxes"})
    energies: list[float] = field(default_factory=list, init=False)  # NaN: not read, or no object

    def update(self, result: ImageResult, annotation: Annotation) -> None:
        """Measure one image."""
        energy = np.nan
        if result.maps is not None:
            energy = object_energy(result.maps.objectness(), annotation.objects.boxes)
        self.energies.append(energy)

    def compute(self) -> Evaluation:
        """Return the mean over the images that have one."""
        metrics = EnergyMetrics(np.array(self.energies))
        found = Evaluation(numbers={"energy": metrics.mean}, detail=metrics)
        if metrics.num_left_out:
            found.notes.append(
                f"energy leaves out {metrics.num_left_out} images without objects, or not read"
            )
        return found


@dataclass
class Ilsvrc:
    """The errors of ILSVRC, for methods that predict one class per image.

    "localisation error" is that of the box of the image's own class, as the SPN paper has it; "top-k localisation
    error" asks for a right class among k guesses with a right box. Images that could not be read are wrong.

    Attributes:
      blacklist: positions of images that do not count.
    """

    num_classes: int
    blacklist: Sequence[int] = ()
    needs: ClassVar[frozenset[str]] = frozenset({"maps"})
    reads: ClassVar[frozenset[Reads]] = frozenset({"boxes", "labels"})
    _guesses: list[np.ndarray] = field(default_factory=list, init=False)
    _boxes: list[np.ndarray] = field(default_factory=list, init=False)
    _own: list[np.ndarray] = field(default_factory=list, init=False)
    _labels: list[int] = field(default_factory=list, init=False)
    _objects: list[ImageObjects] = field(default_factory=list, init=False)

    def update(self, result: ImageResult, annotation: Annotation) -> None:
        """Read the boxes of the best classes, and of the image's own, in one image."""
        label, count = int(np.argmax(annotation.labels)), min(ILSVRC_GUESSES, self.num_classes)
        guesses = np.full(count, (label + 1) % self.num_classes)  # wrong, unless read
        boxes, own = np.zeros((count, 4)), np.zeros(4)
        if result.maps is not None:
            guesses = ranked_classes(result.image_scores[None], count)[0]
            boxes = np.stack([result.maps.tightest(int(c))[0][0] for c in guesses])
            own = result.maps.tightest(label)[0][0]
        self._guesses.append(guesses)
        self._boxes.append(boxes)
        self._own.append(own)
        self._labels.append(label)
        self._objects.append(annotation.objects)

    def compute(self) -> Evaluation:
        """Return the errors."""
        truth = TruthTable.from_annotations(self._objects, num_classes=self.num_classes)
        labels, guesses = np.array(self._labels), np.stack(self._guesses)
        errors = localization_errors(
            guesses,
            np.stack(self._boxes),
            labels,
            truth,
            top=(1, guesses.shape[1]),
            blacklist=self.blacklist,
        )
        own = known_class_error(np.stack(self._own), labels, truth, blacklist=self.blacklist)
        found = Evaluation(numbers={"localisation error": own}, detail=errors)
        for k, wrong, misplaced in zip(
            errors.top, errors.classification, errors.localization, strict=True
        ):
            found.numbers |= {f"top-{k} error": wrong, f"top-{k} localisation error": misplaced}
        if errors.num_left_out:
            found.notes.append(
                f"the blacklist leaves {errors.num_left_out} images out of the errors"
            )
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
