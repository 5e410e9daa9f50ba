"""What the branches of WS-JDS see of single images: localization maps, the seeds read off them, and segmentation.

Where something is drawn, `pixels` is the original image and the result the figure, both [H, W, 3] uint8 RGB.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import cv2
import jax
import jax.numpy as jnp
import numpy as np

from wsod_jax import viz
from wsod_jax.data.proposals.proposal_set import ProposalSet
from wsod_jax.data.records import ImageSet
from wsod_jax.methods.prior_guidance import mask_maps
from wsod_jax.methods.ws_jds import WsJds
from wsod_jax.runs.predictor import Predictor
from wsod_jax.types import Batch, ImageResult, Params

MOST_CLASSES = 3  # shown of an image


@dataclasses.dataclass(frozen=True)
class Guidance:
    """The branches' views of an image, class by class, the most confident first.

    Attributes:
      image_index: position in the image set.
      classes: [n] int.
      scores: [n] float32, φ of the classes.
      localization: [n, H, W] float32 in [0, 1], at the pixels of the original image.
      segmentation: [n, H, W] float32 in [0, 1], likewise.
    """

    image_index: int
    classes: np.ndarray
    scores: np.ndarray
    localization: np.ndarray
    segmentation: np.ndarray


def guidance_of(
    predictor: Predictor, images: ImageSet, proposals: ProposalSet | None
) -> Iterator[Guidance]:
    """Yield what the branches see of every image, in one unmirrored view without dropout.

    Shown are the classes whose score reaches `confidence_thr`, at most `MOST_CLASSES`, or else the best one.

    Args:
      predictor: of a run of WS-JDS.
      images: a set of its classes; labels are not looked at.
      proposals: their proposals.
    """
    scales = predictor.settings.masks.semantic_scales or predictor.settings.scales
    masks = dataclasses.replace(predictor.settings.masks, semantic_scales=None, semantic_flips=None)
    predictor = predictor.with_settings(
        scales=scales[:1], flips=(False,), passes={}, masks=masks, loader="threads"
    )
    look = jax.jit(lambda params, batch: _look(predictor.method, params, batch))
    for batch in predictor.views(images, proposals):
        classes, scores, localization, segmentation = map(np.asarray, look(predictor.params, batch))
        for row in np.flatnonzero(batch.image_mask):
            size, original = batch.image_size[row], batch.views.original_size[row]
            is_shown = classes[row] >= 0
            shown = classes[row][is_shown]
            yield Guidance(
                int(batch.image_index[row]),
                shown,
                scores[row][shown],
                _resized(localization[row][is_shown], size, original),
                _resized(segmentation[row][is_shown], size, original),
            )


def _resized(maps: np.ndarray, size: np.ndarray, original: np.ndarray) -> np.ndarray:
    """Return maps [n, H', W'], valid in `size` = (rows, columns), at the pixels of an image of size `original`."""
    height, width = original.tolist()
    shown = maps[:, : size[0], : size[1]]
    resized = [cv2.resize(one, (width, height), interpolation=cv2.INTER_LINEAR) for one in shown]
    return np.stack(resized)


def _look(method: WsJds, params: Params, batch: Batch) -> tuple[jax.Array, ...]:
    """Return the classes to show [b, k], -1 in empty slots, φ [b, c], and both maps [b, k, H, W]."""
    maps = method.backbone.apply({"params": params["backbone"]}, batch)
    phi = method.score(params, batch.replace(features=maps)).image_scores()
    logits = method.segment(params, maps["c5"])
    top, classes = jax.lax.top_k(phi, min(MOST_CLASSES, phi.shape[1]))
    is_first = jnp.arange(classes.shape[1])[None, :] == 0
    classes = jnp.where((top >= method.confidence_thr) | is_first, classes, -1)
    localization = method.localization_maps(params, batch, None, classes)
    return classes, phi, localization, mask_maps(logits, classes, batch, relative=False)


def draw_guidance(
    pixels: np.ndarray,
    found: Guidance,
    class_names: tuple[str, ...],
    seed_thrs: tuple[float, float],
    cams: ImageResult | None = None,
) -> np.ndarray:
    """Draw one row for each class: the image, the activation of another run, localization map, seeds, segmentation.

    Args:
      found: of the image.
      class_names: of all classes.
      seed_thrs: (background, foreground), of the localization maps.
      cams: maps of a run such as CAM, in whose place nothing is drawn if `None`.

    Source: Shen et al. 2019 (WS-JDS), figures 2 and 4.
    """
    cells, captions = [], []
    for slot, index in enumerate(found.classes.tolist()):
        name = class_names[index]
        cells.append(pixels)
        captions.append(f"{name} {found.scores[slot]:.2f}")
        if cams is not None:
            cam = cams.maps.cam(index)
            cells.append(viz.draw_objectness(pixels, cam - cam.min()))
            captions.append(f"activation {cams.image_scores[index]:.2f}")
        cells += [
            viz.draw_objectness(pixels, found.localization[slot]),
            viz.draw_seeds(pixels, found.localization[slot], seed_thrs),
            viz.draw_objectness(pixels, found.segmentation[slot], highest=1.0),
        ]
        captions += ["localization map", "seeds", "segmentation"]
    columns = len(cells) // max(len(found.classes), 1)
    return viz.contact_sheet(cells, captions=captions, columns=columns, cell_px=320)
