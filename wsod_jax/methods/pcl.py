"""PCL: proposal cluster learning (Tang et al., TPAMI 2018), on OICR's refinement loop.

For every positive class, k-means on the scores picks the highest cluster of proposals; on the graph
that joins those with IoU > 0.4, centres are taken greedily by degree. A cluster n is a centre with
its IoU >= 0.5 neighbours M_n, and is learnt as one small bag, background proposal by proposal:

    L_k = -(1/|P|) [ Σ_bg w_r log P_{r,0} + Σ_n S_n log( (1/|M_n|) Σ_{r∈M_n} P_{r,c_n} ) ],
    S_n = Σ_{r∈M_n} w_r.
"""

from __future__ import annotations

from typing import Literal

import jax

from wsod_jax.losses.refine import cluster_loss
from wsod_jax.methods.refinement import RefinedDetector
from wsod_jax.mining import pcl as pcl_mining
from wsod_jax.mining.assign import Mined
from wsod_jax.nn.proposal_network import ProposalNetwork


def pcl(
    network: ProposalNetwork,
    *,
    max_classes: int,
    num_kmeans_clusters: int = 3,
    graph_iou_thr: float = 0.4,
    max_centres: int = 5,
    fg_iou_thr: float = 0.5,
    ignore_iou_thr: float = 0.0,
    first_stage_scale: float = 1.0,
    mil_reduction: Literal["mean", "sum"] = "mean",
    mil_scale: float = 1.0,
) -> RefinedDetector:
    """Build PCL with its cluster loss.

    Args:
      network: with `num_stages` refinement heads (3 in the paper).
      max_classes: static maximum of positive classes in an image.
      num_kmeans_clusters: k of the k-means on scores.
      graph_iou_thr: proposals with IoU > this are joined by an edge.
      max_centres: at most this many clusters per class, those of the highest scores. (The greedy
        search itself stops when at most 5 candidates are left, as released.)
      fg_iou_thr, ignore_iou_thr, first_stage_scale: see `oicr`.
      mil_reduction, mil_scale: see `Wsddn`.

    Returns:
      A method: `init`, `loss`, `predict`.
    """

    def mine(scores, boxes, mask, labels, features, step) -> Mined:
        del features, step
        return pcl_mining.mine(
            scores,
            boxes,
            mask,
            labels,
            num_kmeans_clusters=num_kmeans_clusters,
            graph_iou_thr=graph_iou_thr,
            max_centres=max_centres,
            fg_iou_thr=fg_iou_thr,
            ignore_iou_thr=ignore_iou_thr,
            max_classes=max_classes,
        )

    def stage_loss(logits: jax.Array, mined: Mined, mask: jax.Array) -> jax.Array:
        return cluster_loss(logits, mined.targets, mined.pseudo, mask)

    return RefinedDetector(
        network,
        mine,
        stage_loss,
        first_stage_scale=first_stage_scale,
        mil_reduction=mil_reduction,
        mil_scale=mil_scale,
    )
