"""Object instance mining: spatial graphs around, and an appearance graph between, the instances of a class."""

from __future__ import annotations

from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from jaxtyping import Bool, Float, Int

from wsod_jax.mining.assign import Mined, assign_proposals, fill_slots, positive_classes
from wsod_jax.ops.boxes import pairwise_iou
from wsod_jax.ops.masked import masked_argmax, masked_mean

Graphs = Literal["spatial", "appearance", "both"]
NodeNeighbours = Literal["paper", "release"]

MIN_OVERLAP = 1e-6  # IoU from which two instances count as overlapping


def mine(
    scores: Float[Array, "r c"],
    boxes: Float[Array, "r 4"],
    mask: Bool[Array, " r"],
    labels: Int[Array, " c"],
    features: Float[Array, "r f"],
    alpha: ArrayLike,
    *,
    graphs: Graphs = "both",
    node_neighbours: NodeNeighbours = "paper",
    davg_includes_core: bool = True,
    fg_iou_thr: ArrayLike = 0.5,
    ignore_iou_thr: ArrayLike = 0.0,
    max_classes: int,
    max_nodes: int = 256,
) -> Mined:
    """Mine all instances of each positive class that look like its top box, and label proposals by them.

    For the classes c with y_c = 1 in ascending order: the core is i_c = argmax_r x_cr. With

        D_ic,j = || f_ic - f_j ||_2                                      (1)
        D_avg  = mean of D_ic,k over IoU(p_ic, p_k) >= T                  (2)

    proposals are visited by ascending D. Each with D_ic,j < alpha D_avg that overlaps neither the core
    nor an earlier node of this class becomes a node, an instance weighted by its own score x_cj. Core and
    nodes are then out of the race: their scores are 0 for every later class, which may still take them,
    with weight 0. Each proposal finally takes label and weight of the core or node it overlaps most
    (`assign_proposals`): those around it are its spatial graph.

    Args:
      scores: [r, c] source scores of the stage before: in [0, 1], no background column.
      boxes: [r, 4] xyxy in pixels.
      mask: [r] True = real proposal; masked rows may hold anything.
      labels: [c] 1 present, 0 absent, -1 unknown; only 1 is mined.
      features: [r, f] f_j. alpha is meaningful only together with their kind: between features with
        dropout all distances are much alike, and alpha >= 2 takes nearly every box that is apart.
      alpha: [] how many times D_avg a node may be away (exclusive); may be traced. 0 finds no node,
        which is OICR.
      graphs: "both"; "spatial": no nodes, the core and its neighbours only; "appearance": core and
        nodes are foreground, their neighbours are not.
      node_neighbours: of "both". "paper": a node's neighbours take its label; "release": they are
        background, as in the authors' code.
      davg_includes_core: whether D_avg averages the core's own 0 in (the paper's loop and the code do).
      fg_iou_thr: T, inclusive; of the core's graph and of all labels.
      ignore_iou_thr: IoU < this gets weight 0; 0 ignores nothing.
      max_classes: static maximum of positive classes; further ones are left out and counted.
      max_nodes: static maximum of nodes per class; further ones are left out and counted.

    Returns:
      `Mined` with 1 + `max_nodes` slots per class: the core, then its nodes by ascending distance. No
      positive class, or no real proposal: all weights 0.

    Raises:
      ValueError: unknown `graphs` or `node_neighbours`.
    Ties: lowest index wins; a proposal between two instances belongs to the one recorded first.
    Gradient: none (stop_gradient).
    Cost: one pass over the features for each positive class; a step over the proposals for each node.
    Source: Lin et al. 2020 (OIM), algorithm 1 and eqs. 1 and 2. As in the released code T is inclusive
    and the algorithm's flag starts afresh for every candidate; as printed no node is ever added.
    """
    _check("graphs", graphs, get_args(Graphs))
    _check("node_neighbours", node_neighbours, get_args(NodeNeighbours))
    scores, boxes, features, alpha = jax.lax.stop_gradient(
        (scores.astype(jnp.float32), boxes, features.astype(jnp.float32), jnp.asarray(alpha))
    )
    scores = jnp.where(mask[:, None], scores, 0.0)
    classes, num_overflow = positive_classes(labels, max_classes)
    num_nodes = 0 if graphs == "spatial" else max_nodes
    squared_norms = jnp.sum(features * features, axis=1)  # [r]

    def mine_class(slot: Array, state: tuple[Array, ...]) -> tuple[Array, ...]:
        removed, indices, weights, lost = state
        snapshot = jnp.where(removed, 0.0, scores[:, classes[slot]])  # [r]
        core, _ = masked_argmax(snapshot, mask)
        chosen = core[None]
        if graphs != "spatial":
            distances = appearance_distances(features, squared_norms, core)
            near, free = spatial_graph(boxes, mask, core, fg_iou_thr, davg_includes_core)
            limit = alpha * masked_mean(distances, near)
            nodes, found = search_nodes(distances, limit, boxes, free, num_nodes)
            chosen = jnp.concatenate([chosen, nodes])
            lost = lost + jnp.maximum(found - num_nodes, 0)
        filled = chosen >= 0
        removed = removed.at[jnp.where(filled, chosen, mask.shape[0])].set(True, mode="drop")
        weights = weights.at[slot].set(jnp.where(filled, snapshot[chosen], 0.0))
        return removed, indices.at[slot].set(chosen), weights, lost

    empty = jnp.full((max_classes, 1 + num_nodes), -1, jnp.int32)
    num_classes = jnp.where(jnp.any(mask), jnp.sum(classes >= 0), 0)
    state = (jnp.zeros_like(mask), empty, jnp.zeros(empty.shape), num_overflow)
    _, indices, weights, num_overflow = jax.lax.fori_loop(0, num_classes, mine_class, state)

    used = (indices >= 0).reshape(-1)  # [g], g = max_classes * (1 + num_nodes)
    is_core = jnp.tile(jnp.arange(1 + num_nodes) == 0, max_classes)
    pseudo = fill_slots(
        boxes,
        index=indices.reshape(-1),
        classes=jnp.repeat(classes, 1 + num_nodes),
        scores=weights.reshape(-1),
        is_core=is_core,
        mask=used,
    )
    targets = assign_proposals(
        pseudo,
        scores,
        boxes,
        mask,
        fg_iou_thr=fg_iou_thr,
        ignore_iou_thr=ignore_iou_thr,
        spreads=_spreading(is_core, graphs, node_neighbours),
    )
    return Mined(targets, pseudo, num_overflow)


def appearance_distances(
    features: Float[Array, "r f"], squared_norms: Float[Array, " r"], core: Int[Array, ""]
) -> Float[Array, " r"]:
    """Return D_core,j = || f_core - f_j ||_2 of every proposal, exactly 0 for the core (eq. 1).

    As ||f_j||^2 + ||f_core||^2 - 2 f_j . f_core this is one matrix product, over the images and stages
    of a batch together; rounding can lift the distance of equal features to about 1e-3 of their norm.

    Args:
      features: [r, f] float32.
      squared_norms: [r] their squared norms.
      core: [] index of the core.
    """
    product = jnp.matmul(features, features[core], precision=jax.lax.Precision.HIGHEST)
    squared = squared_norms + squared_norms[core] - 2.0 * product
    return jnp.sqrt(jnp.maximum(squared, 0.0)).at[core].set(0.0)


def spatial_graph(
    boxes: Float[Array, "r 4"],
    mask: Bool[Array, " r"],
    core: Int[Array, ""],
    fg_iou_thr: ArrayLike,
    includes_core: ArrayLike,
) -> tuple[Bool[Array, " r"], Bool[Array, " r"]]:
    """Return the core's spatial graph, over which D_avg is the mean distance, and who is free to be a node.

    Args:
      boxes: [r, 4] xyxy in pixels.
      mask: [r] True = real proposal.
      core: [] its index.
      fg_iou_thr: [] T, inclusive.
      includes_core: [] whether the core belongs to its graph.

    Returns:
      near: [r] proposals with IoU >= T to the core.
      free: [r] proposals that do not overlap the core.
    """
    overlap = pairwise_iou(boxes, boxes[core][None])[:, 0]
    near = (mask & (overlap >= fg_iou_thr)).at[core].set(includes_core)
    return near, (mask & (overlap < MIN_OVERLAP)).at[core].set(False)


def search_nodes(
    distances: Float[Array, " r"],
    limit: Float[Array, ""],
    boxes: Float[Array, "r 4"],
    free: Bool[Array, " r"],
    max_nodes: int,
) -> tuple[Int[Array, " n"], Int[Array, ""]]:
    """Return the nodes of an appearance graph, nearest first, and how many there are.

    Takes the nearest free proposal while its distance is < `limit`, and frees no longer whatever overlaps
    it: what a walk over the sorted proposals would accept, without visiting those it would reject.

    Args:
      distances: [r] to the core.
      limit: [] alpha D_avg.
      boxes: [r, 4] xyxy in pixels.
      free: [r] proposals that may become nodes.
      max_nodes: number of slots n.

    Returns:
      nodes: [n] int32 proposal indices, -1 in empty slots, which are last.
      found: [] int32, may exceed n; the nodes without slot are the farthest.

    Ties: lowest index wins.
    """

    def any_near(state: tuple[Array, Array, Array]) -> Array:
        return jnp.min(state[0]) < limit

    def take_nearest(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        reach, nodes, found = state
        nearest = jnp.argmin(reach).astype(jnp.int32)
        overlaps = pairwise_iou(boxes, boxes[nearest][None])[:, 0] >= MIN_OVERLAP
        reach = jnp.where(overlaps, jnp.inf, reach).at[nearest].set(jnp.inf)
        return reach, nodes.at[found].set(nearest, mode="drop"), found + 1

    reach = jnp.where(free, distances, jnp.inf)
    state = (reach, jnp.full(max_nodes, -1, jnp.int32), jnp.zeros((), jnp.int32))
    _, nodes, found = jax.lax.while_loop(any_near, take_nearest, state)
    return nodes, found


def _spreading(
    is_core: Bool[Array, " g"], graphs: Graphs, node_neighbours: NodeNeighbours
) -> Bool[Array, " g"]:
    """Return which slots give their label to their neighbours."""
    if graphs == "appearance":
        return jnp.zeros_like(is_core)
    return is_core if node_neighbours == "release" else jnp.ones_like(is_core)


def _check(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(map(repr, allowed))}")
