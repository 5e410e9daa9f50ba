"""Online instance classifier refinement: the loop that OICR, PCL, MIST and OIM share.

Head s is supervised by pseudo labels mined from the scores of head s - 1; head 0 is WSDDN's X.
The methods differ in how they mine (`mine`) and in the loss of a stage; each file tells which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp

from wsod_jax.errors import ConfigError
from wsod_jax.losses.refine import refinement_loss
from wsod_jax.losses.reweight import instance_multiplier
from wsod_jax.methods.contract import Method, counted_term, image_keys, image_term
from wsod_jax.methods.wsddn import mil_metrics, mil_term
from wsod_jax.mining.assign import Mined
from wsod_jax.nn.proposal_network import ProposalNetwork, ProposalOutputs
from wsod_jax.types import Batch, Detections, LossOutput, Params, Term

# (scores [r, c], boxes [r, 4], mask [r], labels [c], features [r, f], step []) -> Mined of one image
Miner = Callable[[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], Mined]
# logits [r, k], mined, mask [r] -> loss of one image and one stage
StageLoss = Callable[[jax.Array, Mined, jax.Array], jax.Array]


def refinement_sources(outputs: ProposalOutputs) -> jax.Array:
    """Return the scores that each stage mines: S^0 = X, S^k = softmax of head k, without gradient.

    Args:
      outputs: of a network with s >= 1 refinement heads.

    Returns:
      [b, s, r, c] float32.
    """
    first = outputs.mil_scores[:, None]
    return jax.lax.stop_gradient(jnp.concatenate([first, outputs.refine_scores()[:, :-1]], axis=1))


@dataclasses.dataclass(frozen=True)
class RefinedDetector(Method):
    """WSDDN with refinement heads: L = L_mil + Σ_k L_k.

    Attributes:
      network: with at least one refinement head.
      mine: pseudo labels of one image and one stage.
      stage_loss: loss of one image and one stage.
      mining_feature: the miner sees the last fully connected features after or before dropout.
      first_stage_scale: factor on L_1.
      mil_reduction: "mean" over classes (what the released Caffe code optimises) or "sum".
      mil_scale: factor on L_mil.
    """

    network: ProposalNetwork
    mine: Miner
    stage_loss: StageLoss
    mining_feature: Literal["fc7_dropout", "fc7_clean"] = "fc7_dropout"
    first_stage_scale: float = 1.0
    mil_reduction: Literal["mean", "sum"] = "mean"
    mil_scale: float = 1.0

    def init(self, key: jax.Array, batch: Batch) -> tuple[Params, dict]:
        """Initialise the network's parameters; there are no extras."""
        return self.network.init(key, batch)["params"], {}

    def loss(
        self, params: Params, extras: dict, batch: Batch, key: jax.Array, step: jax.Array
    ) -> LossOutput:
        """Score the proposals, mine every stage, supervise every head."""
        outputs = self.network.apply({"params": params}, batch, image_keys(key, batch))
        mined = self.mine_stages(outputs, batch, step)
        per_stage = jax.vmap(self.stage_loss, in_axes=(0, 0, None))
        losses = jax.vmap(per_stage)(outputs.refine_logits, mined, outputs.mask)  # [b, s]
        losses = losses.at[:, 0].multiply(self.first_stage_scale)
        stages = {
            f"refine_{s + 1}": image_term(losses[:, s], batch) for s in range(losses.shape[1])
        }
        mil = {"mil": mil_term(outputs, batch, self.mil_reduction, self.mil_scale)}
        metrics = mil_metrics(outputs, batch) | mining_metrics(mined, batch)
        return LossOutput(mil | stages, extras, metrics, mined.pseudo)

    def mine_stages(self, outputs: ProposalOutputs, batch: Batch, step: jax.Array) -> Mined:
        """Mine every stage of every image at once: the sources are known, so stages are vmapped.

        Returns:
          `Mined` with leading axes [b, s].
        """
        clean = self.mining_feature == "fc7_clean"
        features = jax.lax.stop_gradient(outputs.clean if clean else outputs.features)
        stages = jax.vmap(self.mine, in_axes=(0, None, None, None, None, None))
        return jax.vmap(stages, in_axes=(0, 0, 0, 0, 0, None))(
            refinement_sources(outputs),
            batch.proposals,
            outputs.mask,
            batch.labels,
            features,
            step,
        )

    def predict(self, params: Params, extras: dict, batch: Batch) -> Detections:
        """Score proposals by the mean of the heads' softmaxes, background dropped."""
        del extras
        outputs = self.network.apply({"params": params}, batch)
        scores = jnp.mean(outputs.refine_scores(), axis=1)
        scores = jnp.where(outputs.mask[..., None], scores, 0.0)
        return Detections(batch.proposals, scores, outputs.mask, outputs.image_scores())


def reweighted_loss(
    mode: Literal["off", "paper", "release"],
    beta: float,
    release_core_sign: Literal[-1, 1] = -1,
    normaliser: Literal["weighted", "real"] = "weighted",
) -> StageLoss:
    """Return the weighted cross-entropy of one stage, with OIM's instance reweighting in `mode`.

    Args:
      mode, beta, release_core_sign: see `losses.reweight.instance_multiplier`.
      normaliser: |P|, see `losses.refine.refinement_loss`.
    """
    if release_core_sign not in (-1, 1):
        raise ConfigError(
            f"release_core_sign={release_core_sign!r}; allowed are -1 (as released) and 1 (mended)"
        )

    def stage_loss(logits: jax.Array, mined: Mined, mask: jax.Array) -> jax.Array:
        multiplier = instance_multiplier(
            mined.targets, mode=mode, beta=beta, release_core_sign=release_core_sign
        )
        return refinement_loss(logits, mined.targets, multiplier, mask, normaliser=normaliser)

    return stage_loss


def mining_metrics(mined: Mined, batch: Batch) -> dict[str, Term]:
    """Return what is logged of the mining, averaged over stages: boxes, positives, scores."""
    pseudo, targets = mined.pseudo, mined.targets
    real = batch.image_mask[:, None, None]
    nodes = pseudo.mask & ~pseudo.is_core

    def per_image(mask: jax.Array) -> Term:
        return image_term(jnp.mean(jnp.sum(mask, axis=2) * 1.0, axis=1), batch)

    return {
        "pseudo_boxes": per_image(pseudo.mask),
        "nodes": per_image(nodes),
        "positives": per_image((targets.labels > 0) & (targets.weights > 0)),
        "core_score": counted_term(pseudo.scores, pseudo.mask & ~nodes & real, per="cores"),
        "node_score": counted_term(pseudo.scores, nodes & real, per="nodes"),
        "mining_overflow": image_term(jnp.sum(mined.num_overflow, axis=1) * 1.0, batch),
    }
