"""Mean IoU of label maps, as PASCAL VOC's segmentation task counts it."""

from __future__ import annotations

import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.average_precision import mean_over_classes

VOID = 255  # of true pixels that count neither way


class MeanIou:
    """The pixels of a set of images, by true and predicted label.

    Attributes:
      confusion: [k, k] int64, pixels of true label i that were predicted as j; label 0 is the background.
    """

    def __init__(self, num_classes: int) -> None:
        """Start without pixels.

        Args:
          num_classes: foreground classes; labels are 0 to `num_classes`.
        """
        self.confusion = np.zeros((num_classes + 1, num_classes + 1), np.int64)

    def add(self, predicted: np.ndarray, truth: np.ndarray) -> None:
        """Count the pixels of one image.

        Args:
          predicted: [H, W] uint8, 0 background, class + 1. Anything may stand where the truth is void.
          truth: [H, W] uint8, likewise, 255 void.
        Raises:
          DataError: the maps differ in size, or hold a label that is not a class.
        """
        predicted, truth = np.asarray(predicted), np.asarray(truth)
        if predicted.shape != truth.shape:
            raise DataError(
                f"a predicted label map has (height, width) {predicted.shape}, the true one {truth.shape}; both are "
                "needed at the size of the image"
            )
        counted = truth != VOID
        k = len(self.confusion)
        for name, labels in (("predicted", predicted[counted]), ("true", truth[counted])):
            if labels.max(initial=0) >= k:
                raise DataError(
                    f"a {name} label map holds the label {labels.max()}; allowed are 0, the background, to {k - 1}, "
                    f"the last class, and in true maps {VOID} for void"
                )
        pairs = truth[counted].astype(np.int64) * k + predicted[counted]
        self.confusion += np.bincount(pairs, minlength=k * k).reshape(k, k)

    @property
    def iou(self) -> np.ndarray:
        """IoU_i = n_ii / (Σ_j n_ij + Σ_j n_ji - n_ii), [k] float64; NaN for a label that no counted pixel has."""
        hits = np.diagonal(self.confusion)
        union = self.confusion.sum(axis=0) + self.confusion.sum(axis=1) - hits
        return np.where(union > 0, hits / np.maximum(union, 1), np.nan)

    @property
    def mean(self) -> float:
        """Mean over the labels that occur, the background included; NaN before any pixel was counted."""
        return float(mean_over_classes(self.iou))
