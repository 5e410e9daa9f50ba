"""Prior guidance of WS-JDS: how much evidence a map gives a proposal, compared to the proposal's surroundings (Eq. 3).

    W_rc = N(p_r) / √|p_r| − N(p_r^c) / √|p_r^c|

N counts the pixels of a region where the map is at least a threshold, |.| all of its pixels. p_r^c, the context, is the
box enlarged by 1.8 around its center without the box itself.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float, Int

from wsod_jax.methods.assign import positive_classes
from wsod_jax.nn.layers import valid_mask
from wsod_jax.ops.integral_image import box_counts, integral_image
from wsod_jax.ops.resize import upsample
from wsod_jax.types import Batch, FeatureMap

CONTEXT_SCALE = 1.8  # of the context, and of the released code's inner box
LOWEST = -1e20  # below every score
ROUNDING = 1e-5  # scores up to this are 0: 1 - 1 of two regions full of evidence, but for rounding

Region = Literal["frame", "box"]
AreaPower = Literal["root", "plain"]


def evidence_scores(
    evidence: Bool[Array, "h w"],
    proposals: Float[Array, "r 4"],
    size: Int[Array, " 2"],
    *,
    region: Region = "frame",
    area: AreaPower = "root",
) -> Float[Array, " r"]:
    """Return Eq. 3 for every proposal, before normalization.

    Args:
      evidence: [h, w] bool, the map where it is at least the threshold; False in the margin.
      proposals: [r, 4] boxes in pixels of the map. Corners are rounded to whole pixels, halves up.
      size: [2] valid (height, width): boxes are clipped to it, so a box at the border has a smaller context.
      region: "box" is the paper's; "frame", the released one, leaves the box reduced by 1.8 out of p_r, so that
        evidence counts near the box's edge.
      area: counts are divided by the "root" of the area, at least 1, or by the "plain" area (released, of masks).

    Returns:
      [r] float32. A box that covers the image has no context, which counts as one without evidence: where everything
      is evidence it alone scores more than 0.

    Source: Shen et al. 2019 (WS-JDS), Eq. 3; the frame and its rounding are the released kernel's.
    """
    integral = integral_image(evidence)
    # The released kernel's corners are whole pixels, the last one included.
    limit = size[None, ::-1].astype(jnp.float32)  # (width, height)
    first = jnp.clip(jnp.floor(proposals[:, :2] + 0.5), 0, limit - 1)
    last = jnp.clip(jnp.floor(proposals[:, 2:] + 0.5) - 1, first, limit - 1)

    def scaled(factor: float) -> Int[Array, "r 4"]:
        """Return the boxes enlarged around their centers, in whole pixels inside the image, ends excluded."""
        center, half = (first + last) / 2, (last - first) * factor / 2
        low = jnp.clip(jnp.floor(center - half + 0.5), 0, limit)
        high = jnp.clip(jnp.floor(center + half + 0.5) + 1, low, limit)
        return jnp.concatenate([low, high], axis=1).astype(jnp.int32)

    def count_and_area(factor: float) -> tuple[Array, Array]:
        corners = scaled(factor)
        sides = (corners[:, 2:] - corners[:, :2]).astype(jnp.float32)
        return box_counts(integral, corners), sides[:, 0] * sides[:, 1]

    def share(count: Array, pixels: Array) -> Array:
        pixels = jnp.maximum(pixels, 1.0)
        return count / (jnp.sqrt(pixels) if area == "root" else pixels)

    (box, box_area), (outer, outer_area) = count_and_area(1.0), count_and_area(CONTEXT_SCALE)
    inner, inner_area = count_and_area(1.0 / CONTEXT_SCALE) if region == "frame" else (0.0, 0.0)
    return share(box - inner, box_area - inner_area) - share(outer - box, outer_area - box_area)


def prior_weights(
    scores: Float[Array, " r"], mask: Bool[Array, " r"], image_score: ArrayLike
) -> Float[Array, " r"]:
    """Return the weights W of one class from the scores of `evidence_scores`.

    Positive scores are divided by the largest one and negative ones by the size of the smallest one, and the result is
    blended with 1 by the image's score φ of the class: W ← φ W + (1 − φ). Without a positive score W is 1 everywhere.

    Args:
      scores: [r] of one class.
      mask: [r] True = real proposal.
      image_score: φ in [0, 1].

    Returns:
      [r] float32 in [1 − 2 φ, 1]; 1 where masked.

    Source: the released WS-JDS code; the paper prints W without normalization.
    """
    scores = jnp.where(jnp.abs(scores) > ROUNDING, scores, 0.0)
    high = jnp.max(jnp.where(mask, scores, LOWEST), initial=LOWEST)
    low = jnp.min(jnp.where(mask, scores, -LOWEST), initial=-LOWEST)
    positive = scores / jnp.where(high > 0, high, 1.0)
    negative = scores / jnp.where(low < 0, -low, 1.0)
    weights = jnp.where(scores > 0, positive, negative)
    weights = image_score * weights + (1.0 - image_score)
    return jax.lax.stop_gradient(jnp.where(mask & (high > 0), weights, 1.0))


def class_weights(
    evidence: Bool[Array, "k h w"],
    classes: Int[Array, " k"],
    scores: Float[Array, "r c"],
    proposals: Float[Array, "r 4"],
    mask: Bool[Array, " r"],
    size: Int[Array, " 2"],
    *,
    region: Region,
    area: AreaPower,
) -> Float[Array, "r c"]:
    """Return W of one image; 1 for classes that have no evidence map.

    Args:
      evidence: [k, h, w] maps of some classes, at least the threshold; False in the margin.
      classes: [k] of the maps, -1 for none.
      scores: [r, c] X; its sums over proposals are the image's scores φ.
      proposals: [r, 4] boxes in pixels of the maps.
      mask: [r] True = real proposal.
      size: [2] valid (height, width).
      region, area: see `evidence_scores`.

    Gradient: none.   Cost: one integral image at a time.
    """
    phi = jnp.sum(scores, axis=0)

    def of_class(slot: tuple[Array, Array]) -> Array:
        found = evidence_scores(slot[0], proposals, size, region=region, area=area)
        return prior_weights(found, mask, phi[slot[1]])

    columns = jax.lax.map(of_class, (evidence, classes))  # [k, r]
    slots = jnp.where(classes >= 0, classes, scores.shape[1])  # out of range: dropped
    weights = jnp.ones_like(scores).at[:, slots].set(columns.T, mode="drop")
    return jax.lax.stop_gradient(weights)


def present_classes(chosen: Bool[Array, "b c"], count: int) -> Int[Array, "b k"]:
    """Return the first `count` chosen classes of every image, ascending; -1 in empty slots, which come last."""
    return jax.vmap(lambda row: positive_classes(row.astype(jnp.int32), count)[0])(chosen)


def mask_maps(
    logits: FeatureMap, classes: Int[Array, "b k"], batch: Batch, *, relative: bool = True
) -> Float[Array, "b k H W"]:
    """Return S of some classes at the image's resolution, 0 in empty slots (-1); `relative` to its own maximum."""
    shape = batch.image.shape[1:3]
    scores = jax.lax.stop_gradient(jax.nn.sigmoid(logits.features))
    inside = valid_mask(batch.image_size, *shape)[..., 0]

    def of_class(
        cells: jax.Array, valid: jax.Array, inside: jax.Array, index: jax.Array
    ) -> jax.Array:
        found = jnp.where(inside, upsample(cells[..., index], valid, logits.stride, shape), 0.0)
        peak = jnp.max(found) if relative else 1.0
        return jnp.where(index >= 0, found / jnp.where(peak > 0, peak, 1.0), 0.0)

    per_image = jax.vmap(of_class, (None, None, None, 0))
    return jax.vmap(per_image)(scores, logits.size, inside, classes)
