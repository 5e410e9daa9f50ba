"""OICR: online instance classifier refinement (Tang et al., CVPR 2017).

WSDDN's X supervises the first of three refinement heads, each head the next. For every positive
class the best-scored proposal i_c is the pseudo box; proposals with IoU >= 0.5 share its label,
all others are background, and everyone is weighted by the score of the nearest pseudo box:

    L = L_mil + Σ_k L_k,   L_k = -(1/|P|) Σ_j w_j (1 + z_j) log x_{j, label_j},

with z = 0 in OICR itself; OIM's instance-reweighted loss sets it (`reweight`).
"""

from __future__ import annotations

from typing import Literal

from wsod_jax.methods.refinement import RefinedDetector, reweighted_loss
from wsod_jax.mining import oicr as oicr_mining
from wsod_jax.mining.assign import Mined
from wsod_jax.nn.proposal_network import ProposalNetwork


def oicr(
    network: ProposalNetwork,
    *,
    max_classes: int,
    fg_iou_thr: float = 0.5,
    ignore_iou_thr: float = 0.0,
    reweight: Literal["off", "paper", "release"] = "off",
    beta: float = 0.2,
    release_core_sign: Literal[-1, 1] = -1,
    normaliser: Literal["weighted", "real"] = "weighted",
    first_stage_scale: float = 1.0,
    mil_reduction: Literal["mean", "sum"] = "mean",
    mil_scale: float = 1.0,
) -> RefinedDetector:
    """Build OICR, or OICR with the instance-reweighted loss ("IR" alone in OIM's Table 6).

    Args:
      network: with `num_stages` refinement heads (3 in the paper).
      max_classes: static maximum of positive classes in an image.
      fg_iou_thr: proposals with IoU >= this to a pseudo box are positive.
      ignore_iou_thr: proposals with IoU < this to every pseudo box get weight 0 (0.1 is the
        "small trick" of the authors' later releases; 0 is the paper).
      reweight: instance-reweighted loss, "off" | "paper" | "release".
      beta: its β.
      release_core_sign: see `oim`.
      first_stage_scale: factor on the loss of the first head (3 in the authors' PyTorch release).
      normaliser: |P| counts the proposals with weight ("weighted", as released) or all ("real", as
        PyTorch ports do).
      mil_reduction, mil_scale: see `Wsddn`.

    Returns:
      A method: `init`, `loss`, `predict`.
    """

    def mine(scores, boxes, mask, labels, features, step) -> Mined:
        del features, step
        return oicr_mining.mine(
            scores,
            boxes,
            mask,
            labels,
            fg_iou_thr=fg_iou_thr,
            ignore_iou_thr=ignore_iou_thr,
            max_classes=max_classes,
        )

    return RefinedDetector(
        network,
        mine,
        reweighted_loss(reweight, beta, release_core_sign, normaliser),
        first_stage_scale=first_stage_scale,
        mil_reduction=mil_reduction,
        mil_scale=mil_scale,
    )
