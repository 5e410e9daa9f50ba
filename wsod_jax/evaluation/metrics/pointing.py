"""Pointing: does the point of the highest activation lie on an object of the class?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.average_precision import ApMode, mean_over_classes
from wsod_jax.evaluation.metrics.classification import ranking_ap
from wsod_jax.evaluation.metrics.tables import GroundTruth, checked_sizes
from wsod_jax.ops.boxes import union_area

SMALL_OBJECTS = 0.25  # of the image: what the objects of a class in the difficult subset stay below


@dataclass(frozen=True)
class PointingMetrics:
    """Pointing accuracy per class.

    Attributes:
      accuracy: [c] float64 in [0, 1]; NaN for a class that no counted image contains.
      hits: [c] int, counted images whose point hits an object of the class.
      num_images: [c] int, counted images.
      hit: [n, c] bool, the point hits; False where the image is not counted.
      counted: [n, c] bool, the image counts for the class.
    """

    accuracy: np.ndarray
    hits: np.ndarray
    num_images: np.ndarray
    hit: np.ndarray
    counted: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over the classes that occur; NaN if none does."""
        return float(mean_over_classes(self.accuracy))


def _checked(values: np.ndarray, shape: tuple[int, ...], name: str) -> np.ndarray:
    """Return an array of image set and classes, raising `DataError` where it covers others than `truth`."""
    values = np.asarray(values)
    if values.shape != shape:
        raise DataError(
            f"{name} has shape {values.shape}, needed {shape}: every image and class of the ground truth; "
            "evaluate on the image set that was predicted"
        )
    return values


def points_on_objects(points: np.ndarray, truth: GroundTruth, *, tolerance_px: float) -> np.ndarray:
    """Return [n, c] bool: the point lies in a box of its image and class, enlarged by `tolerance_px` on each side.

    The enlarged box is closed: x1 - tolerance <= x <= x2 + tolerance, and likewise in y. Its corners stay corners, so
    the distance to the box may be up to sqrt(2) times the tolerance. Points of classes that the image does not contain
    are on nothing, whatever they hold.

    Args:
      points: [n, c, 2] (x, y) in pixels of the original image; finite where the image contains the class.
      truth: objects of these n images; difficult ones count.
      tolerance_px: at least 0.
    Raises:
      DataError: points of another set, or not finite where they are needed.
    """
    shape = (truth.num_images, truth.num_classes)
    points = _checked(points, (*shape, 2), "points").astype(np.float64)
    of_object = points[truth.image_index, truth.classes]  # [objects, 2]
    if not np.isfinite(of_object).all():
        row = int(np.argmin(np.isfinite(of_object).all(axis=1)))
        raise DataError(
            f"the point of image {truth.image_index[row]}, class {truth.classes[row]} is {of_object[row]}; every "
            "class that an image contains needs a finite point. Was every image of the set predicted?"
        )
    boxes = truth.boxes.astype(np.float64)
    inside = (of_object >= boxes[:, :2] - tolerance_px) & (of_object <= boxes[:, 2:] + tolerance_px)
    found = inside.all(axis=1)
    hit = np.zeros(shape, bool)
    hit[truth.image_index[found], truth.classes[found]] = True
    return hit


def pointing_accuracy(
    points: np.ndarray,
    truth: GroundTruth,
    *,
    labels: np.ndarray | None = None,
    tolerance_px: float = 15.0,
    subset: np.ndarray | None = None,
) -> PointingMetrics:
    """Return the share of the images of a class whose point lies on one of its objects.

    Acc_c = hits / (hits + misses) over the images that contain class c, and the mean over classes is the score. An
    image whose only objects of the class are difficult counts, and difficult ones can be hit, as in the released code.

    Args:
      points: [n, c, 2] (x, y) of the highest activation of every image and class, pixels of the original image. Only
        those of counted pairs matter, but each class that an image contains needs a finite one.
      truth: objects of these n images.
      labels: [n, c] 1 present, 0 absent, -1 not counted; only pairs of label 1 count, so that labels made without
        difficult objects leave out images that have no others. `None`: all pairs with an object in `truth`. A pair
        without an object cannot be judged and never counts.
      tolerance_px: by which boxes are enlarged on each side, closed edges.
      subset: [n, c] bool, pairs to count, such as `difficult_subset`; `None` is all.
    Returns:
      `PointingMetrics`; a class without a counted image has NaN and is left out of the mean.
    Raises:
      DataError: arrays of another set, or points that are not finite where they are needed.

    Source: Zhu et al. 2017 (SPN), section 4.2, after Zhang et al. 2016 (excitation backprop).
    """
    hit = points_on_objects(points, truth, tolerance_px=tolerance_px)
    counted = truth.present()
    if labels is not None:
        counted &= _checked(labels, counted.shape, "labels") == 1
    if subset is not None:
        counted &= _checked(subset, counted.shape, "subset").astype(bool)
    hits, num_images = (hit & counted).sum(axis=0), counted.sum(axis=0)
    return PointingMetrics(
        accuracy=np.where(num_images > 0, hits / np.maximum(num_images, 1), np.nan),
        hits=hits,
        num_images=num_images,
        hit=hit & counted,
        counted=counted,
    )


def difficult_subset(truth: GroundTruth, image_sizes: np.ndarray) -> np.ndarray:
    """Return the pairs of image and class that are hard to point at: small objects among others.

    The objects of the class cover less than 1/4 of the image, and the image contains another class.

    Args:
      truth: objects; difficult ones count, for the area and for the other class.
      image_sizes: [n, 2] (height, width).
    Returns:
      [n, c] bool, the column "Diff." of published tables. Exactly 1/4 is not less.
    Raises:
      DataError: sizes that do not fit the set.

    Source: the protocol of Zhang et al. 2016 (excitation backprop). It speaks of the total area of the boxes; the area
    of their union is taken, so that pixels under two boxes count once.
    """
    small = class_area_ratios(truth, image_sizes) < SMALL_OBJECTS
    present = truth.present()
    return present & small & (present.sum(axis=1, keepdims=True) > 1)


def class_area_ratios(truth: GroundTruth, image_sizes: np.ndarray) -> np.ndarray:
    """Return per image and class the share of the image that the objects of the class cover together.

    Args:
      truth: objects; difficult ones count.
      image_sizes: [n, 2] (height, width).
    Returns:
      [n, c] float64 in [0, 1]; 0 where the image has no object of the class.
    Raises:
      DataError: sizes that do not fit the set.
    """
    sizes = checked_sizes(image_sizes, truth.num_images)
    ratios = np.zeros((truth.num_images, truth.num_classes))
    for image, rows in enumerate(truth.rows_by_image()):
        for c in np.unique(truth.classes[rows]):
            of_class = truth.boxes[rows[truth.classes[rows] == c]]
            ratios[image, c] = union_area(of_class, *sizes[image]) / sizes[image].prod()
    return ratios


def pointing_with_prediction(
    points: np.ndarray,
    image_scores: np.ndarray,
    truth: GroundTruth,
    *,
    tolerance_px: float = 18.0,
    ap_mode: ApMode = "11point",
    include_difficult: bool = False,
) -> np.ndarray:
    """Return the average precision of predicting a class and pointing at it.

    Images are ranked by their score for the class. One is correct if it contains the class and its point lies on an
    object of it; otherwise a false positive, the wrongly pointed ones included. Recall is over all images that contain
    the class, so it stays below 1 where a point misses.

    Args:
      points: [n, c, 2] (x, y) as in `pointing_accuracy`; those of absent classes do not matter.
      image_scores: [n, c], higher is more confident.
      truth: objects of these n images.
      tolerance_px: by which boxes are enlarged on each side, closed edges.
      ap_mode: see `average_precision.average_precision`; `area` is VOC's rule from 2010 on.
      include_difficult: images whose only objects of the class are difficult count as containing it. False leaves
        them out of the ranking, neither right nor wrong, as `classification_ap` and VOC's classification task do.
        Either way a point on a difficult object hits in an image that counts.
    Returns:
      [c] float64; NaN for a class that no counted image contains.
    Raises:
      DataError: arrays of another set, or points or counted scores that are not finite where they are needed.
    Ties: the lower image index ranks first.

    Source: Oquab et al. 2015, section 4; Zhu et al. 2017 (SPN), section 4.2, whose code for it was not released.
    """
    hit = points_on_objects(points, truth, tolerance_px=tolerance_px)
    scores = _checked(image_scores, hit.shape, "image scores")
    positive = truth.present(include_difficult=include_difficult)
    counted = positive | ~truth.present()
    if not np.isfinite(scores[counted]).all():
        raise DataError("image scores are not finite; was every image of the set predicted?")
    ap = np.full(truth.num_classes, np.nan)
    for c in np.flatnonzero(positive.any(axis=0)):
        rows = counted[:, c]
        num_positives = int(positive[:, c].sum())
        ap[c] = ranking_ap(scores[rows, c], hit[rows, c], num_positives, ap_mode=ap_mode)
    return ap
