"""The containers that travel between the rooms: frozen pytrees, every field's shape, type and unit stated.

Axis letters: `b` image, `r` proposal, `c` foreground class, `k` = c + 1 (background first), `g` pseudo box,
`m` detection, `h w` feature grid, `H W` pixels, `d` feature width, `s` refinement stage.
Boxes are `xyxy`, float32, absolute pixels of the image given to the network, with continuous edges
(width = x2 - x1). A field that a method does not use is `None`; `None` is a pytree without leaves, so one
container serves methods with and without proposals.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import struct

Params = dict  # nested dict of arrays, as flax.linen makes it


@struct.dataclass
class Batch:
    """A micro-batch of images on one canvas. NumPy on the host, `jax.Array` on devices.

    Padding is inert: pixels outside `image_size`, rows whose `proposal_mask` is False and images whose
    `image_mask` is False change no result.

    Attributes:
      image: [b, H, W, 3] uint8 or float32, RGB, 0..255; valid in the top-left `image_size` rectangle.
        `None` when `features` is given.
      image_size: [b, 2] int32, valid (height, width) in pixels.
      image_mask: [b] bool, False for rows that only fill the batch.
      image_index: [b] int32, position in the image set; seeds per-image randomness and joins results.
      labels: [b, c] int32, 1 present, 0 absent, -1 unknown (no loss). The only supervision there is.
      proposals: [b, r, 4] float32 boxes, or `None` for methods without proposals.
      proposal_mask: [b, r] bool, False for padding and for proposals merged into another one.
      proposal_scores: [b, r] float32 objectness, where the proposal file has it.
      representative: [b, r] int32, the row whose scores a merged proposal shares (its own index if kept).
      scale: [b, 2] float32, network pixels per pixel of the original image, (x, y).
      flipped: [b] bool, True if mirrored left-right.
      offset: [b, 2] int32 network pixels, (x, y), where the window shown lies in the resized image; `None` for
        batches that show whole images. Original pixel = (network pixel, mirrored back, + offset) / scale.
      features: [b, h, w, d] cached feature map of a frozen backbone, in place of `image`.
    """

    image: jax.Array | None
    image_size: jax.Array
    image_mask: jax.Array
    image_index: jax.Array
    labels: jax.Array | None = None
    proposals: jax.Array | None = None
    proposal_mask: jax.Array | None = None
    proposal_scores: jax.Array | None = None
    representative: jax.Array | None = None
    scale: jax.Array | None = None
    flipped: jax.Array | None = None
    offset: jax.Array | None = None
    features: jax.Array | None = None


@struct.dataclass
class FeatureMap:
    """A backbone's output: `features` [b, h, w, d] and `size` [b, 2] int32, its valid (rows, columns)."""

    features: jax.Array
    size: jax.Array


@struct.dataclass
class Term:
    """A mean kept as two sums, so that padding, devices and micro-batches cannot bias it.

    Attributes:
      total: [b] float32, per-image sums; 0 for filler images.
      weight: [b] float32, per-image normalisers; 0 for filler images.
      per: name of the normaliser. Terms that share it share one gradient accumulator, so accumulating
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
    """What `method.loss` returns.

    Attributes:
      terms: name -> `Term`; the objective is the sum of their means.
      extras: the new non-gradient state (may be the one given).
      metrics: name -> `Term`, logged, no gradient.
      pseudo: the mined boxes, for pictures; `None` for methods that mine none.
    """

    terms: dict[str, Term]
    extras: dict
    metrics: dict[str, Term]
    pseudo: PseudoBoxes | None = None


@struct.dataclass
class PseudoBoxes:
    """Boxes mined from scores, padded to `g` slots. Mining writes one image; `vmap` adds leading axes.

    Attributes:
      boxes: [g, 4] float32.
      classes: [g] int32 foreground class, 0-based.
      scores: [g] float32 source score.
      index: [g] int32, the proposal it is.
      is_core: [g] bool, True for a class's top box, False for further instances.
      mask: [g] bool.
    """

    boxes: jax.Array
    classes: jax.Array
    scores: jax.Array
    index: jax.Array
    is_core: jax.Array
    mask: jax.Array


@struct.dataclass
class RefineTargets:
    """Per-proposal supervision of one refinement head, for one image. All of it is stop-gradient.

    Attributes:
      labels: [r] int32, 0 background, class + 1 foreground.
      weights: [r] float32, the score of the assigned pseudo box; 0 where masked or ignored.
      assigned: [r] int32, slot of the pseudo box with the highest IoU (-1 if there is none).
      is_centre: [r] bool, the proposal is itself a pseudo box (the centre of its spatial graph).
      source: [r] float32, the proposal's own source score for its label (its weight, for background).
    """

    labels: jax.Array
    weights: jax.Array
    assigned: jax.Array
    is_centre: jax.Array
    source: jax.Array


@struct.dataclass
class Detections:
    """What `method.predict` returns: candidate boxes with per-class scores, before merging views and NMS.

    Attributes:
      boxes: [b, m, 4] float32, network pixels; for proposal methods row m is proposal m.
      scores: [b, m, c] float32.
      mask: [b, m] bool.
      image_scores: [b, c] float32 image-level class scores, where the method has them.
      maps: where a method without proposals sees its classes and objects.
      Boxes, scores and mask are `None` for methods without proposals.
    """

    boxes: jax.Array | None
    scores: jax.Array | None
    mask: jax.Array | None
    image_scores: jax.Array | None = None
    maps: ResponseMaps | None = None


@struct.dataclass
class ResponseMaps:
    """Where a method that localises without proposals sees its classes and objects.

    Attributes:
      responses: [b, h, w, c] float32, the evidence R_c for every class, of any sign; 0 in the margin.
      size: [b, 2] int32, valid (rows, columns) of `responses`; 0 for an image smaller than one cell.
      proposal_map: [b, h', w'] float32 objectness M >= 0; sums to 1 over the valid cells of an image.
      proposal_size: [b, 2] int32, valid (rows, columns) of `proposal_map`.
    """

    responses: jax.Array
    size: jax.Array
    proposal_map: jax.Array
    proposal_size: jax.Array
