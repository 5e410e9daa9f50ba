"""How well image-level scores tell which classes an image contains."""

from __future__ import annotations

import numpy as np

from wsod_jax.errors import DataError
from wsod_jax.evaluation.metrics.average_precision import ApMode, average_precision


def classification_ap(
    image_scores: np.ndarray, labels: np.ndarray, *, ap_mode: ApMode = "11point"
) -> np.ndarray:
    """Return the average precision of every class as an image classifier.

    It separates "the class is not recognized" from "the box is wrong": a weakly supervised detector can
    be near 1 here and fail on boxes.

    Args:
      image_scores: [n, c], higher is more confident.
      labels: [n, c] 1 present, 0 absent, -1 not counted.
      ap_mode: see `average_precision.average_precision`.
    Returns:
      [c] float64; NaN for a class that no image contains.
    Raises:
      DataError: shapes differ or a counted score is not finite.
    Ties: the lower image index ranks first.
    """
    image_scores, labels = np.asarray(image_scores), np.asarray(labels)
    if image_scores.shape != labels.shape:
        raise DataError(
            f"image scores have shape {image_scores.shape}, labels {labels.shape}; they must agree"
        )
    if not np.isfinite(image_scores[labels >= 0]).all():
        raise DataError("image scores are not finite; was every image of the set predicted?")
    ap = np.full(labels.shape[1], np.nan)
    for c in range(labels.shape[1]):
        counted = labels[:, c] >= 0
        positive = labels[counted, c] == 1
        if positive.any():
            scores, num_positives = image_scores[counted, c], int(positive.sum())
            ap[c] = ranking_ap(scores, positive, num_positives, ap_mode=ap_mode)
    return ap


def ranking_ap(
    scores: np.ndarray, correct: np.ndarray, num_positives: int, *, ap_mode: ApMode = "11point"
) -> float:
    """Return the average precision of images ranked by score.

    Args:
      scores: [m] finite, higher is more confident.
      correct: [m] bool, the image is found.
      num_positives: images that could be found, at least 1 and no fewer than are correct.
      ap_mode: see `average_precision.average_precision`.
    Returns:
      float in [0, 1].
    Ties: the first row ranks first.
    """
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(correct[order])
    return average_precision(hits / num_positives, hits / np.arange(1, len(hits) + 1), ap_mode)
