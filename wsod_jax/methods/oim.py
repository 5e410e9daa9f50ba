"""OIM: object instance mining with an instance-reweighted loss (Lin et al., AAAI 2020).

For every positive class the best-scored proposal i_c is the core. Its spatial graph holds the
proposals with IoU >= T; D_avg is their mean feature distance to the core (Eq. 2). The appearance
graph adds, nearest first, every proposal that overlaps nothing chosen so far and lies closer than
α D_avg (Eq. 1); each node brings a spatial graph of its own. The loss reweights what was mined:

    L_k = -(1/|P|) Σ_j w_j (1 + z_j) log x_{j, label_j}        (Eq. 4)
    z_j = β - 1 for the centre of a graph, β for its other members, 0 for background.   (Eq. 5)

α falls with training (5, then 2 in the paper): with few reliable features much is admitted, later less.
"""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from wsod_jax.errors import ConfigError
from wsod_jax.methods.refinement import RefinedDetector, reweighted_loss
from wsod_jax.mining import oim as oim_mining
from wsod_jax.mining.assign import Mined
from wsod_jax.nn.proposal_network import ProposalNetwork


def oim(
    network: ProposalNetwork,
    *,
    max_classes: int,
    alpha: tuple[tuple[int, float], ...] = ((0, 5.0), (70_000, 2.0)),
    reweight: Literal["off", "paper", "release"] = "paper",
    beta: float = 0.2,
    release_core_sign: Literal[-1, 1] = -1,
    graphs: Literal["both", "spatial", "appearance"] = "both",
    node_neighbours: Literal["paper", "release"] = "paper",
    mining_feature: Literal["fc7_dropout", "fc7_clean"] = "fc7_dropout",
    davg_includes_core: bool = True,
    max_nodes: int = 256,
    fg_iou_thr: float = 0.5,
    ignore_iou_thr: float = 0.0,
    normaliser: Literal["weighted", "real"] = "weighted",
    first_stage_scale: float = 1.0,
    mil_reduction: Literal["mean", "sum"] = "mean",
    mil_scale: float = 1.0,
) -> RefinedDetector:
    """Build OIM, with or without the instance-reweighted loss.

    Args:
      network: with `num_stages` refinement heads (3 in the paper).
      max_classes: static maximum of positive classes in an image.
      alpha: (first step, α) pairs in ascending order, the first at step 0.
      reweight: instance-reweighted loss: "off" is plain OIM, "paper" is Eq. 5, "release" what the
        released code does (its core factor is -β: gradient ascent, kept only for comparison).
      beta: β of Eq. 5.
      release_core_sign: 1 gives "release" +β for the core, as its author says was meant.
      graphs: "both"; "spatial" (core and neighbours, no nodes) and "appearance" (core and nodes
        themselves, no neighbours) are rows SG and AG of the paper's Table 6.
      node_neighbours: neighbours of nodes are positive ("paper") or background ("release").
      mining_feature: features after dropout, as released (published α depends on it), or before.
      davg_includes_core: D_avg averages the core's own distance 0 in, as released.
      max_nodes: static cap of nodes per class; the metric `mining_overflow` counts the rest.
      fg_iou_thr: the threshold T; IoU >= T.
      ignore_iou_thr, first_stage_scale: see `oicr`.
      normaliser: see `oicr`.
      mil_reduction, mil_scale: see `Wsddn`.

    Returns:
      A method: `init`, `loss`, `predict`.
    """
    check_schedule(alpha)

    def mine(scores, boxes, mask, labels, features, step) -> Mined:
        return oim_mining.mine(
            scores,
            boxes,
            mask,
            labels,
            features,
            alpha_at(alpha, step),
            graphs=graphs,
            node_neighbours=node_neighbours,
            davg_includes_core=davg_includes_core,
            max_nodes=max_nodes,
            fg_iou_thr=fg_iou_thr,
            ignore_iou_thr=ignore_iou_thr,
            max_classes=max_classes,
        )

    return RefinedDetector(
        network,
        mine,
        reweighted_loss(reweight, beta, release_core_sign, normaliser),
        mining_feature=mining_feature,
        first_stage_scale=first_stage_scale,
        mil_reduction=mil_reduction,
        mil_scale=mil_scale,
    )


def check_schedule(alpha: tuple[tuple[int, float], ...]) -> None:
    """Raise `ConfigError` unless `alpha` is (first step, value) pairs that ascend from step 0."""
    starts = [start for start, _ in alpha]
    if not starts or starts[0] != 0 or starts != sorted(set(starts)):
        raise ConfigError(
            f"alpha must be (first step, value) pairs with ascending steps from 0, found {alpha}; "
            "the paper's schedule is ((0, 5.0), (70000, 2.0))"
        )


def alpha_at(alpha: tuple[tuple[int, float], ...], step: jax.Array) -> jax.Array:
    """Return α at a step, a scalar: the value of the last pair that has begun."""
    starts = jnp.array([start for start, _ in alpha])
    values = jnp.array([value for _, value in alpha], jnp.float32)
    return values[jnp.sum(step >= starts) - 1]
