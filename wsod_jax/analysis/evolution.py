"""Scores, proposal maps and class activation maps of single images over training.

`pixels` is the original image and the result the figure, both [H, W, 3] uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from wsod_jax import viz
from wsod_jax.evaluation.inference import Candidates, detect_candidates
from wsod_jax.ops.boxes import box_coverage
from wsod_jax.runs.predictor import Predictor
from wsod_jax.types import ImageResult


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


def draw_map_evolution(
    pixels: np.ndarray,
    found: Mapping[int, ImageResult],
    *,
    class_index: int,
    class_name: str,
    objects: np.ndarray | None = None,
    run_name: str = "",
) -> np.ndarray:
    """Draw an image's proposal map and the class activation map of a class at several checkpoints, one row each.

    Every map has its own color scale, from its lowest to its highest value. Captions of proposal maps give both as
    multiples of the mean (a uniform map reads 1.0 to 1.0); a ring marks the strongest activation.

    Args:
      found: step -> the image's maps at that checkpoint, in the order to show.
      class_index, class_name: of which class the activations are.
      objects: [n, 4] annotated objects of the class, drawn into the image; `None` where they are not known.
      run_name: written into the first column, where several runs are compared.

    Returns:
      [H', W', 3] uint8 RGB, the image first in both rows.

    Source: Zhu et al. 2017 (SPN), figure 3.
    """
    proposal_cells, cam_cells = [pixels], [pixels]
    of_run = f"{run_name}: " if run_name else ""
    proposal_captions = [f"{of_run}proposal map"]
    cam_captions = [f"{of_run}activation to {class_name}"]
    if objects is not None:
        cam_cells = [viz.draw_detections(pixels, (), (), (), (), truth_boxes=objects)]
    for step, image in found.items():
        proposal = image.maps.objectness()
        proposal_cells.append(viz.draw_objectness(pixels, proposal - proposal.min()))
        low, high = np.array([proposal.min(), proposal.max()]) / max(proposal.mean(), 1e-12)
        proposal_captions.append(f"step {step}: {low:.1f} to {high:.1f} × mean")
        cam = image.maps.cam(class_index)
        above = np.maximum(cam - cam.min(), 0.0)
        tight, _ = image.maps.tightest(class_index)
        point = image.maps.point(class_index)
        cam_cells.append(viz.draw_cam(pixels, above, point, tight[0], np.zeros((0, 4))))
        score = image.image_scores[class_index]
        cam_captions.append(f"step {step}: {class_name} {score:.2f}")
    return viz.contact_sheet(
        proposal_cells + cam_cells,
        captions=proposal_captions + cam_captions,
        columns=len(proposal_cells),
        cell_px=400,
    )
