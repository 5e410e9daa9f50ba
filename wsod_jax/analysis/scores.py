"""A class's scores over training, in single images.

Where something is drawn, `pixels` is the original image and the result the figure, both [H, W, 3] uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from wsod_jax import viz
from wsod_jax.evaluation.inference import Candidates, detect_candidates
from wsod_jax.ops.boxes import box_coverage
from wsod_jax.runs.predictor import Predictor


def draw_score_evolution(
    pixels: np.ndarray,
    predictor: Predictor,
    candidates: Mapping[str, Candidates],
    *,
    class_index: int,
    max_boxes: int = 3,
) -> np.ndarray:
    """Draw a class's objectness map of an image at several checkpoints, with the best detections.

    Args:
      predictor: says how detections are selected.
      candidates: title -> the image's candidates at a checkpoint, in the order to show.
      class_index: of which class.
      max_boxes: detections per map.

    Returns:
      [H', W', 3] uint8 RGB, see `viz.draw_evolution`.

    Source: Lin et al. 2020 (OIM), figures 1 and 6.
    """
    maps, boxes, scores = [], [], []
    height, width = pixels.shape[:2]
    for found in candidates.values():
        own = found.scores[:, class_index]
        maps.append(box_coverage(found.boxes, own, height=height, width=width, mask=found.mask))
        decoding = predictor.settings.decoding(is_single_label=False)
        kept = detect_candidates(found, decoding)
        best = np.flatnonzero(kept.mask & (kept.classes == class_index))[:max_boxes]
        boxes.append(kept.boxes[best])
        scores.append(kept.scores[best])
    return viz.draw_evolution(pixels, maps, list(candidates), boxes=boxes, scores=scores)
