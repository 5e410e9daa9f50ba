"""The errors of ILSVRC, for networks that learn one class per image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from wsod_jax.evaluation.maps import Located
from wsod_jax.evaluation.metrics.corloc import top_boxes
from wsod_jax.evaluation.metrics.ilsvrc import (
    ILSVRC_GUESSES,
    known_class_error,
    localization_errors,
    ranked_classes,
)
from wsod_jax.measuring.findings import Findings
from wsod_jax.measuring.maps import MapSplit


def measure_ilsvrc(
    findings: Findings, located: Located, split: MapSplit, blacklist: Sequence[int]
) -> None:
    """Add errors of classification and of localisation to the findings.

    "localisation error" is that of the box of the image's own class, as the SPN paper has it; "top-k localisation
    error" wants a right class among k guesses with a right box. Images that could not be read are wrong.

    Args:
      findings: added to.
      located: with the `ILSVRC_GUESSES` best classes of every image examined.
      split: one label per image, and annotated objects.
      blacklist: positions of images that do not count.
    """
    labels = np.argmax(split.images.labels, axis=1)
    boxes, _ = top_boxes(located.tightest)  # [n, c, 4], without area where nothing was examined
    scores = np.where(np.isfinite(located.image_scores), located.image_scores, 0.0)
    guesses = ranked_classes(scores, min(ILSVRC_GUESSES, scores.shape[1]))  # [n, k]
    rows = np.arange(len(labels))
    errors = localization_errors(
        guesses,
        boxes[rows[:, None], guesses],
        labels,
        split.truth,
        top=(1, guesses.shape[1]),
        blacklist=blacklist,
    )
    findings.scalars["localisation error"] = known_class_error(
        boxes[rows, labels], labels, split.truth, blacklist=blacklist
    )
    for k, wrong, misplaced in zip(
        errors.top, errors.classification, errors.localization, strict=True
    ):
        findings.scalars[f"top-{k} error"] = wrong
        findings.scalars[f"top-{k} localisation error"] = misplaced
    if errors.num_left_out:
        findings.note(f"the blacklist leaves {errors.num_left_out} images out of the errors")
