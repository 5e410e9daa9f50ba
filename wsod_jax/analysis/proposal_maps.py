"""Proposal maps and class activation maps over training, in single images.

Where something is drawn, `pixels` is the original image and the result the figure, both [H, W, 3] uint8 RGB.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from wsod_jax import viz
from wsod_jax.types import ImageResult


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
