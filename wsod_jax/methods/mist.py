"""MIST: multiple instance self-training (Ren et al., CVPR 2020), on OICR's refinement loop.

Instead of one box per class, a stage keeps several: of the best-scored 15 % of the proposals, those
with IoU < 0.2 to every better-ranked one. Assignment and loss are OICR's.
"""

from __future__ import annotations

from typing import Literal

from wsod_jax.methods.refinement import RefinedDetector, reweighted_loss
from wsod_jax.mining import mist as mist_mining
from wsod_jax.mining.assign import Mined
from wsod_jax.nn.proposal_network import ProposalNetwork


def mist(
    network: ProposalNetwork,
    *,
    max_classes: int,
    top_fraction: float = 0.15,
    overlap_thr: float = 0.2,
    max_boxes: int = 64,
    fg_iou_thr: float = 0.5,
    ignore_iou_thr: float = 0.0,
    normaliser: Literal["weighted", "real"] = "weighted",
    first_stage_scale: float = 3.0,
    mil_reduction: Literal["mean", "sum"] = "mean",
    mil_scale: float = 1.0,
) -> RefinedDetector:
    """Build OICR's loop with MIST's pseudo boxes.

    Args:
      network: with `num_stages` refinement heads (3 in the paper).
      max_classes: static maximum of positive classes in an image.
      top_fraction: share of the proposals that are candidates.
      overlap_thr: a candidate is kept if its IoU with every better-ranked one is < this.
      max_boxes: static cap of pseudo boxes per class; the metric `mining_overflow` counts the rest.
      fg_iou_thr, ignore_iou_thr, first_stage_scale: see `oicr`.
      normaliser: see `oicr`.
      mil_reduction, mil_scale: see `Wsddn`.

    Returns:
      A method: `init`, `loss`, `predict`.
    """

    def mine(scores, boxes, mask, labels, features, step) -> Mined:
        del features, step
        return mist_mining.mine(
            scores,
            boxes,
            mask,
            labels,
            top_fraction=top_fraction,
            overlap_thr=overlap_thr,
            max_boxes=max_boxes,
            fg_iou_thr=fg_iou_thr,
            ignore_iou_thr=ignore_iou_thr,
            max_classes=max_classes,
        )

    return RefinedDetector(
        network,
        mine,
        reweighted_loss("off", beta=0.0, normaliser=normaliser),
        first_stage_scale=first_stage_scale,
        mil_reduction=mil_reduction,
        mil_scale=mil_scale,
    )
