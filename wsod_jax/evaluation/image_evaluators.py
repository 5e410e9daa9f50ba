"""Evaluators of maps, label maps and image scores: like those of `evaluators`, image after image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from wsod_jax.evaluation.evaluators import Annotation, Reads
from wsod_jax.evaluation.metrics import semantic
from wsod_jax.evaluation.metrics.average_precision import ApMode
from wsod_jax.evaluation.metrics.classification import classification_ap
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
from wsod_jax.evaluation.metrics.tables import GroundTruth
from wsod_jax.evaluation.report import Evaluation
from wsod_jax.types import ImageResult

OFF_THE_IMAGE = (-1e9, -1e9)  # the point of an image that could not be read: a miss


@dataclass
class _OfImages:
    """Base of evaluators that keep some values of every image."""

    _images: list[tuple[Any, ...]] = field(default_factory=list, init=False)

    def columns(self) -> list[tuple[Any, ...]]:
        """Return each value of all images."""
        return list(zip(*self._images, strict=True))


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
        found.overall = {"mIoU": self._pixels.mean, "IoU of background": float(iou[0])}
        return found


@dataclass
class Classification(_OfImages):
    """Average precision of every class as an image classifier; images that were not read do not count.

    Attributes:
      ap_mode: see `average_precision`.
    """

    ap_mode: ApMode = "11point"
    needs: ClassVar[frozenset[str]] = frozenset({"image_scores"})
    reads: ClassVar[frozenset[Reads]] = frozenset({"labels"})

    def update(self, result: ImageResult, annotation: Annotation) -> None:
        """Keep the scores of one image."""
        if result.image_scores is not None:
            self._images.append((result.image_scores, annotation.labels))

    def compute(self) -> Evaluation:
        """Return the classification AP of every class; nothing where no label is known."""
        found = Evaluation()
        if all((labels < 0).all() for _, labels in self._images):
            return found
        ap = classification_ap(*map(np.stack, self.columns()), ap_mode=self.ap_mode)
        found.add_share("classification AP", ap, mean="classification mAP")
        found.notes.append(f"classification AP is `{self.ap_mode}`")
        return found


@dataclass
class Pointing(_OfImages):
    """Does the strongest activation of a class lie on one of its objects?

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

    def update(self, result: ImageResult, annotation: Annotation) -> None:
        """Read the points of the classes that one image contains."""
        points = np.full((self.num_classes, 2), OFF_THE_IMAGE)
        if result.maps is not None:
            for c in np.unique(annotation.objects.classes):
                points[c] = result.maps.point(int(c))
        scores = result.image_scores
        scores = np.zeros(self.num_classes) if scores is None else scores
        self._images.append((points, scores, annotation.objects, result.size))

    def compute(self) -> Evaluation:
        """Return pointing accuracy, that of small objects among others, and the AP of predicting and pointing."""
        points, scores, objects, sizes = self.columns()
        truth = GroundTruth.from_annotations(objects, num_classes=self.num_classes)
        points, scores = np.stack(points), np.stack(scores)
        difficult = difficult_subset(truth, np.array(sizes))
        found = Evaluation()
        for name, subset in (("pointing", None), ("pointing difficult", difficult)):
            metrics = pointing_accuracy(
                points, truth, tolerance_px=self.tolerance_px, subset=subset
            )
            found.add_share(name, metrics.accuracy)
        ap = pointing_with_prediction(
            points, scores, truth, tolerance_px=self.prediction_px, ap_mode=self.ap_mode
        )
        found.add_share("pointing AP", ap)
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
        found = Evaluation(overall={"energy": metrics.mean}, detail=metrics)
        if metrics.num_left_out:
            found.notes.append(
                f"energy leaves out {metrics.num_left_out} images without objects, or not read"
            )
        return found


@dataclass
class Ilsvrc(_OfImages):
    """The errors of ILSVRC, for methods that predict one class per image.

    "localization error" is that of the box of the image's own class, as the SPN paper has it; "top-k localization
    error" asks for a right class among k guesses with a right box. Images that could not be read are wrong.

    Attributes:
      blacklist: positions of images that do not count.
    """

    num_classes: int
    blacklist: Sequence[int] = ()
    needs: ClassVar[frozenset[str]] = frozenset({"maps"})
    reads: ClassVar[frozenset[Reads]] = frozenset({"boxes", "labels"})

    def update(self, result: ImageResult, annotation: Annotation) -> None:
        """Read the boxes of the best classes, and of the image's own, in one image."""
        known = np.flatnonzero(annotation.labels != 0)  # -1 where its objects are difficult alone
        label, count = int(known[0]), min(ILSVRC_GUESSES, self.num_classes)
        guesses = np.full(count, (label + 1) % self.num_classes)  # wrong, unless read
        boxes, own = np.zeros((count, 4)), np.zeros(4)
        if result.maps is not None:
            guesses = ranked_classes(result.image_scores[None], count)[0]
            boxes = np.stack([result.maps.tightest(int(c))[0][0] for c in guesses])
            own = result.maps.tightest(label)[0][0]
        self._images.append((guesses, boxes, own, label, annotation.objects))

    def compute(self) -> Evaluation:
        """Return the errors."""
        *columns, objects = self.columns()
        guesses, boxes, own, labels = map(np.array, columns)
        truth = GroundTruth.from_annotations(objects, num_classes=self.num_classes)
        top = (1, guesses.shape[1])
        errors = localization_errors(
            guesses, boxes, labels, truth, top=top, blacklist=self.blacklist
        )
        own = known_class_error(own, labels, truth, blacklist=self.blacklist)
        found = Evaluation(overall={"localization error": own}, detail=errors)
        for k, wrong, misplaced in zip(
            errors.top, errors.classification, errors.localization, strict=True
        ):
            found.overall |= {f"top-{k} error": wrong, f"top-{k} localization error": misplaced}
        if errors.num_left_out:
            found.notes.append(
                f"the blacklist leaves {errors.num_left_out} images out of the errors"
            )
        return found
