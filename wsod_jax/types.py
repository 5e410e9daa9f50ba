"""The containers that modules exchange: frozen pytrees, with every field's shape, type and unit.

Axis letters: `b` image, `r` proposal, `c` foreground class, `k` = c + 1 (background first), `g` pseudo box,
`m` detection, `h w` feature grid, `H W` pixels, `d` feature width, `s` refinement stage.
Boxes are `xyxy`, float32, absolute pixels of the image given to the network, with continuous edges
(width = x2 - x1). A field that a method does not use is `None`, a pytree without leaves, so one container serves
methods with and without proposals.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

Params = dict  # nested dict of arrays, as flax.linen makes it


def static(**options: Any) -> Any:
    """Return a field of a container that is part of its structure, not an array."""
    return struct.field(pytree_node=False, **options)


@struct.dataclass
class FeatureMap:
    """A backbone's map of every image.

    Attributes:
      features: [b, h, w, d].
      size: [b, 2] int32, valid (rows, columns).
      stride: network pixels per cell.
    """

    features: jax.Array
    size: jax.Array
    stride: float = static()


@struct.dataclass
class Photometric:
    """Factors by which the pixels of each row are still to be jittered; see `ops.color`.

    The input draws them, and the training step applies them on the device before the method sees the batch.

    Attributes:
      factors: [b, 2] float32, 1 for none: of saturation and value ("hsv"), or of brightness and saturation ("rgb").
      space: "hsv" or "rgb".
    """

    factors: jax.Array
    space: str = static()


@struct.dataclass
class Views:
    """The transform of each row of a batch: original pixel = (network pixel, mirrored back, + offset) / scale.

    Attributes:
      scale: [b, 2] float32, network pixels per pixel of the original image, (x, y).
      offset: [b, 2] int32 network pixels, (x, y), position of the view in the resized image.
      flipped: [b] bool, True if mirrored left-right.
      original_size: [b, 2] int32, (height, width) of the original image in pixels.
      photometric: jitter of the pixels that is still to be applied; `None` for none, and in every evaluation.
    """

    scale: jax.Array
    offset: jax.Array
    flipped: jax.Array
    original_size: jax.Array
    photometric: Photometric | None = None


@struct.dataclass
class Targets:
    """Boxes to learn from, in a stream that reads a `BoxSet`.

    Attributes:
      boxes: [b, g, 4] float32 network pixels, clipped to the view.
      classes: [b, g] int32, 0-based.
      weights: [b, g] float32.
      ignore: [b, g] bool, neither positive nor negative: crowds and difficult objects.
      mask: [b, g] bool, False for padding and for boxes outside the view.
    """

    boxes: jax.Array
    classes: jax.Array
    weights: jax.Array
    ignore: jax.Array
    mask: jax.Array


@struct.dataclass
class Batch:
    """A micro-batch of images on one canvas. NumPy on the host, `jax.Array` on devices.

    Padding is inert: pixels outside `image_size`, rows whose `proposal_mask` is False and images whose
    `image_mask` is False change no result.

    Attributes:
      image: [b, H, W, 3] uint8 or float32, RGB, 0..255; valid in the top-left `image_size` rectangle.
        `None` when `features` or `pooled` is given.
      image_size: [b, 2] int32, valid (height, width) in pixels.
      image_mask: [b] bool, False for rows that only fill the batch.
      image_index: [b] int32, position in the image set; seeds per-image randomness and joins results.
      views: the transforms from the original images.
      labels: [b, c] int32, 1 present, 0 absent, -1 unknown (no loss).
      proposals: [b, r, 4] float32 boxes, or `None` for methods without proposals. Row r is the same region
        of an image in all of its views.
      proposal_mask: [b, r] bool, False for padding, for proposals merged into another one, and for those outside the
        view.
      proposal_scores: [b, r] float32 objectness, if the proposal file has it.
      representative: [b, r] int32, the row whose scores a merged proposal shares; its own index if it is kept or
        outside the view.
      features: maps of a frozen backbone by name, in place of `image`.
      pooled: [b, r, p, p, d] float16 or float32, proposals pooled from maps of a frozen backbone, in place of
        `image`; 0 where `proposal_mask` is False.
      targets: boxes to learn from, in streams that have them.
      cues: the cue source's answer to the method's request, a pytree of arrays [b, ...].
    """

    image: jax.Array | None
    image_size: jax.Array
    image_mask: jax.Array
    image_index: jax.Array
    views: Views
    labels: jax.Array | None = None
    proposals: jax.Array | None = None
    proposal_mask: jax.Array | None = None
    proposal_scores: jax.Array | None = None
    representative: jax.Array | None = None
    features: dict[str, FeatureMap] | None = None
    pooled: jax.Array | None = None
    targets: Targets | None = None
    cues: Any = None


Batches = Batch | dict[str, Batch]  # a method of several streams gets a batch of each, by name


@struct.dataclass
class Term:
    """A mean kept as two sums, so that padding, devices and micro-batches cannot bias it.

    Attributes:
      total: [b] float32, per-image sums; 0 for filler images.
      weight: [b] float32, per-image normalizers; 0 for filler images.
      per: name of the normalizer. Terms that share it share one gradient accumulator, so accumulating
        micro-batches costs one gradient tree per distinct name.
    """

    total: jax.Array
    weight: jax.Array
    per: str = struct.field(pytree_node=False, default="image")

    def mean(self) -> jax.Array:
        """Return Σ total / Σ weight, and 0 where the weights sum to 0."""
        weight = jnp.sum(self.weight)
        return jnp.sum(self.total) / jnp.where(weight > 0, weight, 1.0)


@struct.dataclass
class LossOutput:
    """The result of `method.loss`.

    Attributes:
      terms: name -> `Term`; the objective is the sum of their means.
      extras: the new non-gradient state (may be the one given).
      metrics: name -> `Term`, logged, no gradient.
      pseudo: the mined boxes, for figures; `None` for methods that mine none.
      figures: further arrays [b, ...] to draw, by name. A training step does not compute them.
    """

    terms: dict[str, Term]
    extras: dict
    metrics: dict[str, Term]
    pseudo: PseudoBoxes | None = None
    figures: dict[str, jax.Array] = struct.field(default_factory=dict)


@struct.dataclass
class Source:
    """A miner's input for one image and one refinement stage; made by `Source.of`, without gradient.

    Attributes:
      scores: [r, c] float32 scores of the stage before, in [0, 1], without background; 0 where masked.
      boxes: [r, 4] the boxes of these scores, network pixels; [r, c, 4] if the stage before regresses them per class.
      proposals: [r, 4].
      mask: [r] bool, True = real proposal; masked rows of boxes and features may hold anything.
      labels: [c] int32, 1 present, 0 absent, -1 unknown; only 1 is mined.
      features: [r, f] float32, for miners that compare appearance; `None` for the others.
    """

    scores: jax.Array
    boxes: jax.Array
    proposals: jax.Array
    mask: jax.Array
    labels: jax.Array
    features: jax.Array | None = None

    @classmethod
    def of(
        cls,
        scores: jax.Array,
        proposals: jax.Array,
        mask: jax.Array,
        labels: jax.Array,
        features: jax.Array | None = None,
        boxes: jax.Array | None = None,
    ) -> Source:
        """Return a source in float32, scores of masked rows 0; `boxes` are the proposals unless given."""
        scores, proposals, boxes = jax.lax.stop_gradient(
            (scores.astype(jnp.float32), proposals, proposals if boxes is None else boxes)
        )
        if features is not None:
            features = jax.lax.stop_gradient(features.astype(jnp.float32))
        scores = jnp.where(mask[:, None], scores, 0.0)
        return cls(scores, boxes, proposals, mask, labels, features)

    def boxes_of(self, class_index: jax.Array) -> jax.Array:
        """Return the boxes [r, 4] of one class."""
        return self.boxes if self.boxes.ndim == 2 else self.boxes[:, class_index]

    def boxes_at(self, rows: jax.Array, classes: jax.Array) -> jax.Array:
        """Return the boxes [g, 4] of rows [g] for classes [g]."""
        return self.boxes[rows] if self.boxes.ndim == 2 else self.boxes[rows, classes]


@struct.dataclass
class PseudoBoxes:
    """Boxes mined from scores, padded to `g` slots. Mining writes one image; `vmap` adds leading axes.

    Attributes:
      boxes: [g, 4] float32.
      classes: [g] int32 foreground class, 0-based.
      scores: [g] float32 source score.
      index: [g] int32, the mined proposal.
      is_seed: [g] bool, True for a class's top box, False for further instances.
      mask: [g] bool.
    """

    boxes: jax.Array
    classes: jax.Array
    scores: jax.Array
    index: jax.Array
    is_seed: jax.Array
    mask: jax.Array


@struct.dataclass
class RefineTargets:
    """Per-proposal supervision of one refinement head, for one image. All of it is stop-gradient.

    Attributes:
      labels: [r] int32, 0 background, class + 1 foreground.
      weights: [r] float32, the score of the assigned pseudo box; 0 where masked or ignored.
      matched_idx: [r] int32, slot of the pseudo box with the highest IoU (-1 if there is none).
      is_pseudo_box: [r] bool, the proposal is itself a pseudo box (the center of its spatial graph).
      source_scores: [r] float32, the proposal's own source score for its label (its weight, for background).
    """

    labels: jax.Array
    weights: jax.Array
    matched_idx: jax.Array
    is_pseudo_box: jax.Array
    source_scores: jax.Array


@struct.dataclass
class Predictions:
    """The result of `method.predict` for one view: candidate boxes with class scores, before merging views and NMS.

    Outputs that were not requested, or that the method does not have, are `None`.

    Attributes:
      boxes: [b, m, 4] float32 network pixels, or [b, m, c, 4], one per class; if `aligned_rows`, row m is proposal m.
      scores: [b, m, c] float32.
      mask: [b, m] bool.
      image_scores: [b, c] float32 image-level class scores.
      maps: class activation maps and proposal map of a method without proposals.
      semantic: [b, h, w, c] probabilities of every class in every cell.
      memo: values that `predict_masks` of the same view needs again, such as feature maps; it stays on the device.
    """

    boxes: jax.Array | None = None
    scores: jax.Array | None = None
    mask: jax.Array | None = None
    image_scores: jax.Array | None = None
    maps: ActivationMaps | None = None
    semantic: FeatureMap | None = None
    memo: Any = None


@struct.dataclass
class Detections:
    """Candidate boxes that pass thresholds and NMS, the best first; see `ops.detect`.

    Attributes:
      boxes: [b, n, 4] float32.
      scores: [b, n] float32.
      classes: [b, n] int32, 0-based.
      mask: [b, n] bool, False in empty slots, which are last.
      row: [b, n] int32, row of the candidate.
    """

    boxes: jax.Array
    scores: jax.Array
    classes: jax.Array
    mask: jax.Array
    row: jax.Array


@struct.dataclass
class ActivationMaps:
    """Class activation maps and proposal map of a method that localizes without proposals.

    The units of both do not depend on the number of cells, so that views of different sizes can be averaged and their
    boxes ranked together.

    Attributes:
      cams: [b, h, w, c] float32 of any sign: the mean over valid cells is the class's logit without bias; 0 in the
        margin.
      size: [b, 2] int32, valid (rows, columns) of `cams`; 0 for an image smaller than one cell.
      proposal_map: [b, h', w'] float32 objectness >= 0; its mean over the valid cells of an image is 1.
      proposal_size: [b, 2] int32, valid (rows, columns) of `proposal_map`.
    """

    cams: jax.Array
    size: jax.Array
    proposal_map: jax.Array
    proposal_size: jax.Array


class Mask(NamedTuple):
    """The pixels of one object, as a window of its image; all pixels outside the window are background.

    Attributes:
      top, left: position of the window in pixels; 0 or more.
      pixels: [h, w] bool; h and w may be 0.
    """

    top: int
    left: int
    pixels: np.ndarray


@dataclasses.dataclass(frozen=True)
class ImageResult:
    """The predictions for one image, all views merged: NumPy, pixels of the original image, picklable.

    Outputs that were not requested, or that the method does not have, are `None`.

    Attributes:
      image_index: position in the image set.
      size: (height, width) of the original image.
      boxes: [n, 4] float32, the best first.
      scores: [n] float32.
      classes: [n] int32, 0-based.
      rows: [n] int32, row of each detection's candidate, and `views`: [n] int32, its view, -1 if views were averaged.
        `None` if read from a file without them.
      masks: one per detection.
      image_scores: [c] float32.
      maps: class activation maps and proposal map, `evaluation.maps.ImageMaps`.
      semantic: [height, width] uint8, 0 background, else class + 1.
      candidate_scores: [c, k] float32, the best scores of every class before NMS, if requested.
    """

    image_index: int
    size: tuple[int, int]
    boxes: np.ndarray | None = None
    scores: np.ndarray | None = None
    classes: np.ndarray | None = None
    rows: np.ndarray | None = None
    views: np.ndarray | None = None
    masks: Sequence[Mask] | None = None
    image_scores: np.ndarray | None = None
    maps: Any = None
    semantic: np.ndarray | None = None
    candidate_scores: np.ndarray | None = None

    def above(self, thresholds: np.ndarray, limit: int | None = None) -> ImageResult:
        """Keep only the `limit` best detections whose score exceeds their class's threshold, [c]."""
        keep = np.flatnonzero(self.scores > thresholds[self.classes])[:limit]
        masks = None if self.masks is None else tuple(self.masks[i] for i in keep)
        columns = {
            name: None if (column := getattr(self, name)) is None else column[keep]
            for name in ("boxes", "scores", "classes", "rows", "views")
        }
        return dataclasses.replace(self, masks=masks, **columns)
