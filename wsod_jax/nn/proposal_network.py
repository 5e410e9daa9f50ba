"""Backbone, RoI pooling, box head and scores: the network that every proposal method shares."""

from __future__ import annotations

import functools
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from wsod_jax.nn.heads import BoxRegression, MidnHead, RefinementHeads
from wsod_jax.ops.roi import roi_align, roi_max_pool
from wsod_jax.types import Batch, FeatureMap

# Pooling function, and where it assumes the center of cell 0, in cells from the image's corner: quantized pooling
# rounds an edge to the nearest center. Proposals were clipped to their image at reading.
POOLING = {"max": (functools.partial(roi_max_pool, inside=True), 0.0), "align": (roi_align, 0.5)}


@struct.dataclass
class ProposalOutputs:
    """The network's outputs for every proposal.

    Attributes:
      mil_scores: [b, r, c] float32, X of WSDDN: softmax over proposals times softmax over classes.
      refine_logits: [b, s, r, k] float32, one slice per refinement head; s may be 0.
      features: [b, r, f], the last fully connected layer after ReLU and (when training) dropout.
      clean: [b, r, f], the same before dropout.
      mask: [b, r] bool, real proposals of real images.
      deltas: [b, s, r, c, 4] float32, each head's box deltas, see `ops.boxes.decode_boxes`; `None` without box
        regression.
    """

    mil_scores: jax.Array
    refine_logits: jax.Array
    features: jax.Array
    clean: jax.Array
    mask: jax.Array
    deltas: jax.Array | None = None

    def image_scores(self) -> jax.Array:
        """Return φ_c = Σ_r X_rc, [b, c] in (0, 1)."""
        return jnp.sum(self.mil_scores, axis=1)

    def refine_scores(self) -> jax.Array:
        """Return each refinement head's softmax without the background column, [b, s, r, c]."""
        return jax.nn.softmax(self.refine_logits, axis=-1)[..., 1:]


class ProposalNetwork(nn.Module):
    """Score proposals with a multiple-instance head and `num_stages` refinement heads.

    Attributes:
      backbone: module from a batch to maps by name, of which "c5" is pooled.
      box_head: the box head, module from pooled maps [b, r, p, p, d] and dropout keys to per-proposal features.
      num_classes: c.
      num_stages: number of refinement heads s; 0 for plain WSDDN.
      roi_size: bins per side, p.
      pooling: quantized max pooling (published numbers need it) or RoIAlign.
      det_temperature: divides the detection logits before their softmax over proposals.
      score_gate: pooled features are multiplied by 1 + score_gate * objectness if proposals have scores (WSDDN with
        EdgeBoxes: 10); 0 disables it.
      regresses: whether the refinement heads regress boxes.
    """

    backbone: nn.Module
    box_head: nn.Module
    num_classes: int
    num_stages: int
    roi_size: int
    pooling: Literal["max", "align"]
    det_temperature: float
    score_gate: float
    regresses: bool = False

    def setup(self):
        self.midn = MidnHead(num_classes=self.num_classes, det_temperature=self.det_temperature)
        if self.num_stages:
            self.refine = RefinementHeads(num_classes=self.num_classes, num_stages=self.num_stages)
        if self.regresses:
            self.refine_boxes = BoxRegression(self.num_classes, self.num_stages)

    def __call__(self, batch: Batch, dropout_keys: jax.Array | None = None) -> ProposalOutputs:
        """Score a batch's proposals.

        Args:
          batch: needs `proposals`, `proposal_mask` and one of `image`, `features`, `pooled`.
          dropout_keys: [b] typed keys, one dropout mask per image; `None` disables dropout.

        Returns:
          `ProposalOutputs`; masked proposals score 0 in `mil_scores`.
        """
        mask = batch.proposal_mask & batch.image_mask[:, None]
        pooled = self.gate(self.pooled(batch), batch, mask)  # [b, r, p, p, d]
        return self.score(pooled, mask, dropout_keys)

    def pooled(self, batch: Batch) -> jax.Array:
        """Return the pooled proposals [b, r, p, p, d], masked rows 0; cached ones if the batch has any."""
        if batch.pooled is not None:
            return batch.pooled.astype(self.backbone.dtype)
        mask = batch.proposal_mask & batch.image_mask[:, None]
        return self.pool(self.backbone(batch)["c5"], batch, mask)

    def pool(self, maps: FeatureMap, batch: Batch, mask: jax.Array) -> jax.Array:
        """Pool every proposal to [b, r, p, p, d]; masked rows are 0."""
        pool, assumed_center = POOLING[self.pooling]
        boxes = batch.proposals
        if self.backbone.roi_mapping == "receptive_field":
            center_px = self.backbone.receptive_field().center_px
            boxes = boxes - (center_px - assumed_center * maps.stride)
        return pool(
            maps.features,
            boxes,
            mask,
            maps.size,
            output_size=self.roi_size,
            spatial_scale=1.0 / maps.stride,
        )

    def gate(self, pooled: jax.Array, batch: Batch, mask: jax.Array) -> jax.Array:
        """Multiply pooled proposals by 1 + `score_gate` * objectness."""
        if not self.score_gate or batch.proposal_scores is None:
            return pooled
        gate = 1.0 + self.score_gate * jnp.where(mask, batch.proposal_scores, 0.0)
        return pooled * gate[:, :, None, None, None].astype(pooled.dtype)

    def score(
        self, pooled: jax.Array, mask: jax.Array, dropout_keys: jax.Array | None
    ) -> ProposalOutputs:
        """Apply the box head and the scoring heads to pooled maps."""
        boxes = self.box_head(pooled, dropout_keys)
        mil_scores = self.midn(boxes.features, mask)
        if self.num_stages:
            refine_logits = self.refine(boxes.features)
        else:
            b, r, c = mil_scores.shape
            refine_logits = jnp.zeros((b, 0, r, c + 1), jnp.float32)
        deltas = self.refine_boxes(boxes.features) if self.regresses else None
        return ProposalOutputs(mil_scores, refine_logits, boxes.features, boxes.clean, mask, deltas)
