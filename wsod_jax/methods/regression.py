"""Box regression in refinement: every head regresses proposals to their pseudo boxes."""

from __future__ import annotations

import dataclasses
from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wsod_jax.losses.box_regression import smooth_l1
from wsod_jax.methods.assign import Mined
from wsod_jax.ops.boxes import CODE_WEIGHTS, clip_boxes, decode_boxes, encode_boxes
from wsod_jax.options import NOT_NEGATIVE, POSITIVE


@dataclasses.dataclass(frozen=True, kw_only=True)
class Regression:
    """Class-specific box regression, in addition to the classification of each refinement head.

        L_reg = (1/R) Σ_{r: y_r > 0} w_r Σ_4 smoothL1_β(d_{r, y_r} - encode(p_r, q_g(r)))

    with R real proposals p_r, deltas d_rc, and weight w_r and label y_r from the pseudo box q_g(r).

    Attributes:
      weights: of the four deltas, see `encode_boxes`.
      beta: β; 0 is the L1 loss.
      scale: factor on L_reg.
      mined_boxes: stage k > 1 mines the "proposals", or the boxes "regressed" by head k - 1. Either way proposals are
        assigned to the mined box that they overlap most, and are not pooled again.
    """

    weights: Annotated[tuple[float, float, float, float], POSITIVE] = CODE_WEIGHTS
    beta: Annotated[float, NOT_NEGATIVE] = 1.0
    scale: Annotated[float, NOT_NEGATIVE] = 1.0
    mined_boxes: Literal["proposals", "regressed"] = "proposals"

    def loss(
        self,
        deltas: Float[Array, "r c 4"],
        mined: Mined,
        proposals: Float[Array, "r 4"],
        mask: Bool[Array, " r"],
    ) -> Float[Array, ""]:
        """Return L_reg of one head on one image.

        Args:
          deltas: [r, c, 4] of the head.
          mined: the head's pseudo labels.
          proposals: [r, 4].
          mask: [r] True = real proposal; masked rows of deltas and proposals may hold anything.

        Returns:
          [] float32. 0 without foreground.

        Gradient: only to the deltas of foreground proposals for their class.
        Source: Ren et al. 2020 (MIST), as released, with smooth L1.
        """
        pseudo, targets = mined.pseudo, mined.targets
        foreground = mask & (targets.labels > 0)
        target = encode_boxes(proposals, pseudo.boxes[targets.matched_idx], self.weights)  # [r, 4]
        classes = jnp.maximum(targets.labels - 1, 0)
        predicted = jnp.take_along_axis(deltas, classes[:, None, None], axis=1)[:, 0]
        difference = jnp.where(foreground[:, None], predicted - jax.lax.stop_gradient(target), 0.0)
        distance = jnp.sum(smooth_l1(difference, self.beta), axis=1)
        total = jnp.sum(jnp.where(foreground, targets.weights, 0.0) * distance)
        return self.scale * total / jnp.maximum(jnp.sum(mask), 1)

    def boxes(
        self,
        proposals: Float[Array, "b r 4"],
        deltas: Float[Array, "b r c 4"],
        image_size: Int[Array, "b 2"],
    ) -> Float[Array, "b r c 4"]:
        """Return every proposal's box for every class, clipped to its image.

        Args:
          proposals: [b, r, 4] network pixels.
          deltas: [b, r, c, 4] of one head, or the mean of all.
          image_size: [b, 2] (height, width) in pixels.
        """
        boxes = decode_boxes(proposals[:, :, None], deltas, self.weights)
        height, width = image_size[:, :1, None], image_size[:, 1:, None]
        return clip_boxes(boxes, height, width)
