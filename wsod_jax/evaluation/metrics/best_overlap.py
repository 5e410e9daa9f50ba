"""Average best overlap (ABO): how well the best box or mask of each object fits, whatever its score."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wsod_jax.evaluation.metrics.average_precision import best_overlaps, mean_over_classes
from wsod_jax.evaluation.metrics.tables import DetectionTable, GroundTruth, Region, check_same_set


@dataclass(frozen=True)
class BestOverlap:
    """The best overlap of the objects of a set.

    Attributes:
      abo: [c] float64 in [0, 1], mean over a class's objects; NaN for a class without an object.
      overlap: [n] float64 per object, in table order: the highest IoU with a detection of its class and image, 0 where
        there is none.
    """

    abo: np.ndarray
    overlap: np.ndarray

    @property
    def mean(self) -> float:
        """Mean over the classes that have an object (MABO); NaN if none has."""
        return float(mean_over_classes(self.abo))


def average_best_overlap(
    detections: DetectionTable, truth: GroundTruth, *, region: Region = "boxes"
) -> BestOverlap:
    """Return ABO_c = 1/|G_c| Σ_{g in G_c} max_d IoU(g, d) over the detections d of class c in g's image.

    Args:
      detections: scores are not used.
      truth: objects that are difficult or crowds are left out.
      region: what overlaps, boxes or masks.
    Raises:
      DataError: the tables cover different sets, or lack the masks to compare.
    Source: Uijlings et al. 2013 (Selective Search), section 5.1; Pont-Tuset and Van Gool 2015 for instances of a class.
    """
    check_same_set(detections, truth, region)
    counted = truth.take(~truth.difficult)
    as_detections = DetectionTable(
        counted.image_index,
        counted.classes,
        np.ones(len(counted)),
        counted.boxes,
        truth.num_images,
        truth.num_classes,
        counted.masks,
    )
    as_truth = GroundTruth(
        detections.image_index,
        detections.classes,
        detections.boxes,
        np.zeros(len(detections), bool),
        detections.num_images,
        detections.num_classes,
        areas=np.zeros(len(detections)),  # which nothing asks for
        masks=detections.masks,
    )
    overlap, _ = best_overlaps(as_detections, as_truth, region=region)
    total = np.bincount(counted.classes, overlap, minlength=truth.num_classes)
    count = np.bincount(counted.classes, minlength=truth.num_classes)
    abo = np.where(count > 0, total / np.maximum(count, 1), np.nan)
    return BestOverlap(abo, overlap)
