"""OIM: object instance mining with an instance-reweighted loss (Lin et al., AAAI 2020), on OICR's refinement loop.

The best-scored proposal i_c of every positive class is its core. The core's spatial graph contains the proposals with
IoU >= T. The appearance graph adds, nearest first, every proposal at a distance < α D_avg that overlaps neither the
core nor an earlier node; each node has a spatial graph too (`Oim.mine`, Algorithm 1):

    D_ic,j = || f_ic - f_j ||_2                                                   (1)
    D_avg  = mean of D_ic,k over IoU(p_ic, p_k) >= T                              (2)

The loss reweights the proposals (`Oim.stage_loss`, `instance_multiplier`):

    L_k = -(1/|P|) Σ_j w_j (1 + z_j) log x_{y_j, j}                               (4)
    z_j = β - 1 for the center of a graph, β for its other members, 0 for background.   (5)

α decreases during training (5, then 2 in the paper), as features become reliable.
"""

from __future__ import annotations

import dataclasses
from typing import Annotated, ClassVar, Literal

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from wsod_jax.errors import ConfigError
from wsod_jax.methods.assign import Mined, fill_slots, positive_classes
from wsod_jax.methods.oicr import Oicr, weighted_cross_entropy
from wsod_jax.nn.proposal_network import ProposalOutputs
from wsod_jax.ops.boxes import pairwise_iou
from wsod_jax.ops.masked import masked_argmax, masked_mean
from wsod_jax.options import NOT_NEGATIVE
from wsod_jax.types import RefineTargets, Source

MIN_OVERLAP = 1e-6  # IoU from which two proposals count as overlapping


@dataclasses.dataclass(frozen=True, kw_only=True)
class Oim(Oicr):
    """OIM, with or without the instance-reweighted loss.

    Attributes:
      alpha: (first step, α) pairs in ascending order, the first at step 0. α = 0 adds no node, so mining is OICR's.
      reweight: instance-reweighted loss: "off" is plain OIM, "paper" is Eq. 5, "release" is the
        released code (its core factor is -β: gradient ascent, for comparison only).
      beta: β of Eq. 5; the paper's best is 0.2.
      release_core_sign: 1 gives "release" the factor +β for the core, as its author intended.
      graphs: "both"; "spatial" (core and neighbors, no nodes, as OICR) and "appearance" (core and nodes, no
        neighbors) are rows SG and AG of the paper's Table 6.
      node_neighbors: neighbors of nodes are positive ("paper") or background ("release").
      mining_feature: features after dropout, as released (published α depends on it), or before. After dropout all
        distances are similar, and α >= 2 accepts nearly every box that does not overlap.
      davg_includes_core: D_avg includes the core's distance 0 to itself, as in the paper's loop and the release.
      max_nodes: static cap of nodes per class; the metric `mining_overflow` counts the rest.
    """

    alpha: Annotated[tuple[tuple[int, float], ...], NOT_NEGATIVE] = ((0, 5.0), (70_000, 2.0))
    reweight: Literal["off", "paper", "release"] = "paper"
    beta: Annotated[float, NOT_NEGATIVE] = 0.2
    release_core_sign: Literal[-1, 1] = -1
    graphs: Literal["both", "spatial", "appearance"] = "both"
    node_neighbors: Literal["paper", "release"] = "paper"
    mining_feature: Literal["fc7_dropout", "fc7_clean"] = "fc7_dropout"
    davg_includes_core: bool = True
    max_nodes: Annotated[int, NOT_NEGATIVE] = 256

    paper: ClassVar[str] = "Lin et al. 2020 (OIM)"

    def __post_init__(self):
        super().__post_init__()
        starts = [start for start, _ in self.alpha]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ConfigError(
                "config.method.alpha must be (first step, value) pairs with ascending steps from 0, found "
                f"{self.alpha}; the paper's schedule is ((0, 5.0), (70000, 2.0))"
            )

    def changes_at(self) -> dict[str, tuple[int, ...]]:
        """Return the updates at which α changes."""
        return {"alpha": tuple(start for start, _ in self.alpha)}

    def alpha_at(self, step: jax.Array) -> jax.Array:
        """Return α at a step, a scalar: the value of the last pair whose first step is reached."""
        starts = jnp.array([start for start, _ in self.alpha])
        values = jnp.array([value for _, value in self.alpha], jnp.float32)
        return values[jnp.sum(step >= starts) - 1]

    def mined_features(self, scored: ProposalOutputs) -> jax.Array:
        """Return the last fully connected features [b, r, f]."""
        return scored.clean if self.mining_feature == "fc7_clean" else scored.features

    def mine(self, source: Source, step: jax.Array) -> Mined:
        """Mine the instances of each positive class that resemble its top box, and label proposals by them.

        For the classes c with y_c = 1 in ascending order: the core is i_c = argmax_r x_cr. Proposals are visited by
        ascending D (eq. 1). Each with D_ic,j < alpha D_avg (eq. 2) that overlaps neither the core nor an earlier node
        of this class becomes a node, weighted by its score x_cj. The scores of core and nodes are then 0 for every
        later class, which may still take them, with weight 0. Finally each proposal takes label and weight of the core
        or node that it overlaps most (`assign_proposals`); its foreground members are its spatial graph.

        Args:
          source: of one image and stage, with features.
          step: [] update, for α.

        Returns:
          `Mined` with 1 + `max_nodes` slots per class: the core, then its nodes by ascending distance. No
          positive class, or no real proposal: all weights 0.

        Ties: lowest index wins; a proposal between two instances takes the one recorded first.
        Gradient: none.
        Cost: one pass over the features for each positive class; a step over the proposals for each node.
        Source: Lin et al. 2020 (OIM), algorithm 1 and eqs. 1 and 2. As in the released code T is inclusive
        and the flag is reset for every candidate; as printed no node would ever be added (docs/methods.md, D7).
        """
        mask, foreground_thr = source.mask, self.iou_thrs[1]
        alpha = self.alpha_at(step)
        classes, num_overflow = positive_classes(source.labels, self.max_classes)
        num_nodes = 0 if self.graphs == "spatial" else self.max_nodes

        def mine_class(slot: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
            removed, indices, weights, overflow = state
            scores = jnp.where(removed, 0.0, source.scores[:, classes[slot]])  # [r]
            core, _ = masked_argmax(scores, mask)
            instances = core[None]
            if self.graphs != "spatial":
                boxes = source.boxes_of(classes[slot])
                distances = appearance_distances(source.features, core)
                neighbors, candidates = spatial_graph(
                    boxes, mask, core, foreground_thr, self.davg_includes_core
                )
                limit = alpha * masked_mean(distances, neighbors)  # α D_avg
                nodes, count = search_nodes(distances, limit, boxes, candidates, num_nodes)
                instances = jnp.concatenate([instances, nodes])
                overflow = overflow + jnp.maximum(count - num_nodes, 0)
            filled = instances >= 0
            removed = removed.at[jnp.where(filled, instances, mask.shape[0])].set(True, mode="drop")
            weights = weights.at[slot].set(jnp.where(filled, scores[instances], 0.0))
            return removed, indices.at[slot].set(instances), weights, overflow

        empty = jnp.full((self.max_classes, 1 + num_nodes), -1, jnp.int32)
        num_classes = jnp.where(jnp.any(mask), jnp.sum(classes >= 0), 0)
        state = (jnp.zeros_like(mask), empty, jnp.zeros(empty.shape), num_overflow)
        _, indices, weights, num_overflow = jax.lax.fori_loop(0, num_classes, mine_class, state)

        index, slot_classes = indices.reshape(-1), jnp.repeat(classes, 1 + num_nodes)  # [g]
        is_seed = jnp.tile(jnp.arange(1 + num_nodes) == 0, self.max_classes)
        pseudo = fill_slots(
            source.boxes_at(index, slot_classes),
            index=index,
            classes=slot_classes,
            scores=weights.reshape(-1),
            is_seed=is_seed,
            mask=index >= 0,
        )
        targets = self.assign(pseudo, source, self._labels_neighbors(is_seed))
        return Mined(targets, pseudo, num_overflow)

    def stage_loss(
        self, logits: Float[Array, "r k"], mined: Mined, mask: Bool[Array, " r"]
    ) -> Float[Array, ""]:
        """Return L_k of one image (eq. 4)."""
        multiplier = instance_multiplier(  # 1 + z_j
            mined.targets,
            mode=self.reweight,
            beta=self.beta,
            release_core_sign=self.release_core_sign,
        )
        return weighted_cross_entropy(
            logits, mined.targets, multiplier, mask, normalizer=self.normalizer
        )

    def _labels_neighbors(self, is_seed: Bool[Array, " g"]) -> Bool[Array, " g"]:
        """Return the slots whose neighbors take their label."""
        if self.graphs == "appearance":
            return jnp.zeros_like(is_seed)
        return is_seed if self.node_neighbors == "release" else jnp.ones_like(is_seed)


def appearance_distances(features: Float[Array, "r f"], core: Int[Array, ""]) -> Float[Array, " r"]:
    """Return D_core,j = || f_core - f_j ||_2 of every proposal, exactly 0 where features are equal (eq. 1).

    Args:
      features: [r, f] float32.
      core: [] index of the core.

    Cost: one pass over the features, shared by the stages of a batch; differences are not stored.
    """
    return jnp.sqrt(jnp.sum((features - features[core][None]) ** 2, axis=1))


def spatial_graph(
    boxes: Float[Array, "r 4"],
    mask: Bool[Array, " r"],
    core: Int[Array, ""],
    fg_iou_thr: ArrayLike,
    includes_core: ArrayLike,
) -> tuple[Bool[Array, " r"], Bool[Array, " r"]]:
    """Return the core's spatial graph, over which D_avg is the mean distance, and the candidates for nodes.

    Args:
      boxes: [r, 4] xyxy in pixels.
      mask: [r] True = real proposal.
      core: [] index of the core.
      fg_iou_thr: [] T, inclusive.
      includes_core: [] whether the core belongs to its graph.

    Returns:
      neighbors: [r] proposals with IoU >= T to the core.
      candidates: [r] proposals that do not overlap the core.
    """
    overlap = pairwise_iou(boxes, boxes[core][None])[:, 0]
    neighbors = (mask & (overlap >= fg_iou_thr)).at[core].set(includes_core)
    return neighbors, (mask & (overlap < MIN_OVERLAP)).at[core].set(False)


def search_nodes(
    distances: Float[Array, " r"],
    limit: Float[Array, ""],
    boxes: Float[Array, "r 4"],
    candidates: Bool[Array, " r"],
    max_nodes: int,
) -> tuple[Int[Array, " n"], Int[Array, ""]]:
    """Return the nodes of an appearance graph, nearest first, and how many there are.

    Takes the nearest candidate while its distance is < `limit`, and drops those that overlap it. This accepts the same
    proposals as Algorithm 1's walk over the sorted ones, without visiting those that it rejects.

    Args:
      distances: [r] to the core.
      limit: [] alpha D_avg.
      boxes: [r, 4] xyxy in pixels.
      candidates: [r] proposals that may become nodes.
      max_nodes: number of slots n.

    Returns:
      nodes: [n] int32 proposal indices, -1 in empty slots, which are last.
      count: [] int32, may exceed n; the nodes without a slot are the farthest.

    Ties: lowest index wins.
    """

    def any_below_limit(state: tuple[Array, Array, Array]) -> Array:
        return jnp.min(state[0]) < limit

    def take_nearest(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        distances, nodes, count = state
        nearest = jnp.argmin(distances).astype(jnp.int32)
        overlaps = pairwise_iou(boxes, boxes[nearest][None])[:, 0] >= MIN_OVERLAP
        distances = jnp.where(overlaps, jnp.inf, distances).at[nearest].set(jnp.inf)
        return distances, nodes.at[count].set(nearest, mode="drop"), count + 1

    distances = jnp.where(candidates, distances, jnp.inf)
    state = (distances, jnp.full(max_nodes, -1, jnp.int32), jnp.zeros((), jnp.int32))
    _, nodes, count = jax.lax.while_loop(any_below_limit, take_nearest, state)
    return nodes, count


def instance_multiplier(
    targets: RefineTargets,
    *,
    mode: Literal["off", "paper", "release"],
    beta: ArrayLike,
    release_core_sign: Literal[-1, 1],
) -> Float[Array, " r"]:
    """Return the factor 1 + z_j on each proposal's loss weight.

    "paper", where the center of a graph is the pseudo box itself (core or node):

        1 + z_j = beta        centers,
                  1 + beta    other members of a graph (foreground),
                  1           background.

    "release", as the gradient of the authors' code. With q_j the proposal's source score for its label
    (w_j, for background) and ratio_j = q_j / (w_j + 1e-5):

        1 + z_j = -beta       ratio > 0.999 and j is a center,
                  1           ratio > 0.999 otherwise,
                  1 + beta    0.299 < ratio <= 0.999,
                  1           ratio <= 0.299.

    The minus sign increases the loss of the mined boxes; an author called it a mistake, and
    `release_core_sign=1` corrects it. For w below about 0.01 the 1e-5 makes every ratio < 0.999, so that
    cores and background get 1 + beta: the rule takes effect only as scores grow.

    Args:
      targets: of any miner; OICR's graphs are top boxes with their neighbors.
      mode: "off" (all ones), "paper" or "release".
      beta: in [0, 1]; the paper's best is 0.2.
      release_core_sign: sign of the first line of "release".

    Returns:
      [r] float32. Masked proposals get a factor too, but have weight 0.

    Gradient: none (stop_gradient).
    Source: Lin et al. 2020 (OIM), eqs. 4 and 5. Eq. 5 taken literally would give the background
    1 + beta too; the text names only members of a spatial graph.
    """
    targets = jax.lax.stop_gradient(targets)
    ones = jnp.ones_like(targets.weights)
    if mode == "off":
        return ones
    if mode == "paper":
        member = jnp.where(targets.is_pseudo_box, beta, 1.0 + beta)
        return jnp.where(targets.labels > 0, member, ones).astype(jnp.float32)
    ratio = targets.source_scores / (targets.weights + 1e-5)
    weak = jnp.where(ratio > 0.299, 1.0 + beta, ones)
    strong = jnp.where(targets.is_pseudo_box, release_core_sign * beta, ones)
    return jnp.where(ratio > 0.999, strong, weak).astype(jnp.float32)
