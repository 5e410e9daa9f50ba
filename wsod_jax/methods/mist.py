"""MIST: multiple instance self-training (Ren et al., CVPR 2020), on OICR's refinement loop.

Instead of one box per class, a stage mines several: of the best-scored 15 % of the proposals, those with IoU < 0.2 to
every better-ranked one. Assignment and loss are OICR's; the released heads also regress boxes (`regression`).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array

from wsod_jax.errors import ConfigError
from wsod_jax.methods.assign import Mined, fill_slots, positive_classes
from wsod_jax.methods.oicr import Oicr
from wsod_jax.ops.boxes import pairwise_iou
from wsod_jax.ops.masked import masked_top_k
from wsod_jax.options import COUNT, NOT_NEGATIVE, SHARE, Range
from wsod_jax.types import Source


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mist(Oicr):
    """OICR's loop with MIST's pseudo boxes.

    Attributes:
      top_fraction: fraction of the proposals that are candidates.
      overlap_thr: a candidate is kept if its IoU with every better-ranked one is < this.
      max_boxes: static cap of pseudo boxes per class; the metric `mining_overflow` counts the rest.
      first_stage_scale: factor on L_1, box regression included.
    """

    top_fraction: Annotated[float, Range(0, 1, is_low_in=False)] = 0.15
    overlap_thr: Annotated[float, SHARE] = 0.2
    max_boxes: Annotated[int, COUNT] = 64
    first_stage_scale: Annotated[float, NOT_NEGATIVE] = 3.0

    paper: ClassVar[str] = "Ren et al. 2020 (MIST)"

    def __post_init__(self):
        super().__post_init__()
        if not 0.0 < self.top_fraction <= 1.0:
            raise ConfigError(
                f"config.method.top_fraction is {self.top_fraction}; it must be in (0, 1]"
            )

    def mine(self, source: Source, step: jax.Array) -> Mined:
        """Mine several boxes per positive class of one image and label all proposals by them.

        For each class, the floor(`top_fraction` n) best of the n real proposals, at least one, are ranked by score. A
        proposal of this list is an instance if its IoU with *every* better-ranked one, instance or not, is
        < `overlap_thr` (exclusive); so the best one always is. Instances are weighted by their scores. Classes are
        mined independently: of two that mine the same proposal it is assigned to the lower one.

        Args:
          source: of one image and stage.
          step: not used.

        Returns:
          `Mined` with `max_boxes` slots per class, by descending score. No positive class, or no real
          proposal: all weights 0.

        Ties: lowest index ranks first.   Gradient: none.
        Cost: O((top_fraction r)^2) memory per class slot.
        Source: Ren et al. 2020, arXiv:2004.04725, algorithm 1, and the released code, which however keeps no candidate
        of fewer than seven proposals.
        """
        del step
        mask, max_boxes = source.mask, self.max_boxes
        classes, num_overflow = positive_classes(source.labels, self.max_classes)
        list_size = max(1, math.floor(self.top_fraction * mask.shape[0] + 1e-6))
        num_top = jnp.floor(self.top_fraction * jnp.sum(mask) + 1e-6)  # 1e-6: float32 rounding
        in_list = jnp.arange(list_size) < jnp.maximum(num_top, 1)

        def mine_class(c: Array) -> tuple[Array, ...]:
            score, index, valid = masked_top_k(source.scores[:, c], mask, list_size)
            listed = valid & in_list & (c >= 0)
            ranked = source.boxes_of(c)[index]
            overlaps = pairwise_iou(ranked, ranked) >= self.overlap_thr  # [l, l]
            instance = listed & ~jnp.any(jnp.tril(overlaps, -1), axis=1)
            slot = jnp.where(instance, jnp.cumsum(instance) - 1, max_boxes)
            overflow = jnp.maximum(jnp.sum(instance) - max_boxes, 0)
            mined = jnp.full(max_boxes, -1, jnp.int32).at[slot].set(index, mode="drop")
            return mined, jnp.zeros(max_boxes).at[slot].set(score, mode="drop"), overflow

        mined, weights, overflow = jax.vmap(mine_class)(classes)  # [m, n], [m, n], [m]
        index, slot_classes = mined.reshape(-1), jnp.repeat(classes, max_boxes)
        pseudo = fill_slots(
            source.boxes_at(index, slot_classes),
            index=index,
            classes=slot_classes,
            scores=weights.reshape(-1),
            is_seed=jnp.tile(jnp.arange(max_boxes) == 0, self.max_classes),
            mask=index >= 0,
        )
        return Mined(self.assign(pseudo, source), pseudo, num_overflow + jnp.sum(overflow))
