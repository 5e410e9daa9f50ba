"""Soft proposals: the objectness of every cell of a feature map, by a random walk over its cells (SPN).

Cells are the nodes of a graph whose edge weights grow with the difference of two cells and fall with their distance:

    D'_ab = ‖u_a − u_b‖₂ · exp(−|a − b|² / (2 ε²)),      D_ab = D'_ab / Σ_a D'_ab,      M ← D M.

Mass gathers in cells unlike their surroundings. D' is symmetric, so the walk's stationary distribution is its
row sums, divided by their sum. The walk need not converge to it: D' has a zero diagonal, and where a map has about
two kinds of cells the mass alternates between them. Published numbers come from walks of 20 steps.

D' is a dense matrix [n, n], or is computed in blocks of rows whenever it is needed.

Source: Zhu et al. 2017, section 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from wsod_jax.errors import ConfigError

Solver = Literal["walk", "stationary", "uniform"]
EpsilonRule = Literal["side", "area"]
EXACT = jax.lax.Precision.HIGHEST


class Nodes(NamedTuple):
    """The cells of one image's map, row by row.

    Attributes:
      features: [n, d] float32, 0 where masked; shifted by one common vector, which preserves distances.
      squares: [n] float32, squared norms of `features`.
      position: [n, 2] float32, row and column in cells.
      mask: [n] bool, True = inside the image.
    """

    features: Float[Array, "n d"]
    squares: Float[Array, " n"]
    position: Float[Array, "n 2"]
    mask: Bool[Array, " n"]


def soft_proposals(
    features: Float[Array, "b h w d"],
    size: Int[Array, "b 2"],
    *,
    solver: Solver = "walk",
    epsilon_rule: EpsilonRule = "side",
    epsilon_factor: float = 0.15,
    num_steps: int | Int[Array, ""] = 20,
    tolerance: float = 1e-4,
    block_nodes: int | None = None,
) -> Float[Array, "b h w"]:
    """Return the proposal map M of every image.

    Args:
      features: [b, h, w, d] deep features U; anything outside `size` is ignored.
      size: [b, 2] int32, valid (rows, columns).
      solver: "walk" takes at most `num_steps` steps from the uniform map; "stationary" gives the stationary
        distribution; "uniform" gives 1 / n, which turns a soft proposal network into class activation mapping.
      epsilon_rule: ε = epsilon_factor · √(h w) ("side": the paper's 0.15 N on an N x N map), or · h w ("area":
        the released VGG networks, whose kernel is nearly flat).
      epsilon_factor: see `epsilon_rule`.
      num_steps: the most steps of the walk.
      tolerance: the walk ends before a step that would change M by less than this, in the L2 norm; 0: never.
      block_nodes: compute D' in blocks of this many rows, one image at a time; `None` stores D' of all images,
        4 b n² bytes.

    Returns:
      [b, h, w] float32, >= 0; sums to 1 over each image's valid cells and is 0 outside them. Uniform if all valid
      cells are equal, or there is only one; all 0 if there is none.

    Raises:
      ConfigError: an option is not one of those allowed.

    Gradient: none; M is a constant.
    Cost: one product [n, d] x [d, n] per image, and one pass over D' per step of the walk. Blocks are computed again
      in every step, which "stationary" avoids.

    Source: Zhu et al. 2017, section 3.1 and equation 1. The released code renormalizes M too, but mistakes node
      positions on maps that are not square and gives NaN on constant ones.
    """
    _check(solver, epsilon_rule, epsilon_factor, block_nodes)
    features = jax.lax.stop_gradient(features)

    def solve(image: Float[Array, "h w d"], valid: Int[Array, " 2"]) -> Float[Array, "h w"]:
        nodes = graph_nodes(image, valid)
        if solver == "uniform":
            mass = _uniform(nodes)
        else:
            epsilon = kernel_epsilon(valid, epsilon_rule, epsilon_factor)
            multiply = (
                _dense(nodes, epsilon)
                if block_nodes is None
                else _blocked(nodes, epsilon, block_nodes)
            )
            mass = _solve(nodes, multiply, solver, num_steps, tolerance)
        return mass.reshape(image.shape[:2])

    if block_nodes is None:
        return jax.vmap(solve)(features, size)
    return jax.lax.map(lambda args: solve(*args), (features, size))


def kernel_epsilon(
    size: Int[Array, " 2"], epsilon_rule: EpsilonRule, epsilon_factor: float
) -> Float[Array, ""]:
    """Return ε, the standard deviation of the spatial kernel in cells, for a map of valid (rows, columns) `size`."""
    area = (size[0] * size[1]).astype(jnp.float32)
    side = jnp.sqrt(area) if epsilon_rule == "side" else area
    return jnp.maximum(epsilon_factor * side, 1e-6)  # a map may have no cells


def graph_nodes(features: Float[Array, "h w d"], size: Int[Array, " 2"]) -> Nodes:
    """Return the nodes of one image's map.

    Features are taken relative to the first cell and then to their mean. Both preserve distances; the first makes
    equal cells exactly 0, the second keeps rounding errors small.
    """
    height, width, depth = features.shape
    rows, columns = jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij")
    mask = ((rows < size[0]) & (columns < size[1])).reshape(-1)
    x = features.astype(jnp.float32).reshape(-1, depth)
    x = jnp.where(mask[:, None], x - x[:1], 0.0)
    mean = jnp.sum(x, axis=0, keepdims=True) / jnp.maximum(jnp.sum(mask), 1)
    x = jnp.where(mask[:, None], x - mean, 0.0)
    position = jnp.stack([rows.reshape(-1), columns.reshape(-1)], axis=1).astype(jnp.float32)
    return Nodes(x, jnp.sum(x * x, axis=1), position, mask)


def dissimilarity(nodes: Nodes, chosen: Nodes, epsilon: Float[Array, ""]) -> Float[Array, "m n"]:
    """Return the rows of D' that belong to the nodes `chosen`: D'_ab = ‖u_a − u_b‖ exp(−|a − b|² / 2ε²).

    ‖u − v‖² = ‖u‖² + ‖v‖² − 2 u·v is clipped at 0 before its root is taken; the diagonal is 0 exactly.
    """
    products = jnp.matmul(chosen.features, nodes.features.T, precision=EXACT)
    squared = chosen.squares[:, None] + nodes.squares[None, :] - 2.0 * products
    squared_offset = sum(
        (a[:, None] - b[None, :]) ** 2
        for a, b in zip(chosen.position.T, nodes.position.T, strict=True)
    )
    kernel = jnp.exp(-squared_offset / (2.0 * epsilon**2))
    real = chosen.mask[:, None] & nodes.mask[None, :] & (squared_offset > 0)
    return jnp.where(real, jnp.sqrt(jnp.maximum(squared, 0.0)) * kernel, 0.0)


def random_walk(
    transfer: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    start: Float[Array, " n"],
    *,
    num_steps: int | Int[Array, ""],
    tolerance: float,
) -> Float[Array, " n"]:
    """Repeat M ← D M / Σ D M from `start`, until a step would change M by less than `tolerance`.

    Args:
      transfer: x -> D x.
      start: [n], sums to 1, or all 0.
      num_steps: the most steps.
      tolerance: of the L2 norm of D M − M; the step that would fall below it is not taken.

    Returns:
      [n], sums to 1; `start` where a step leaves no mass at all.
    """

    def unfinished(carry):
        step, _, arrived = carry
        return (step < num_steps) & ~arrived

    def walk(carry):
        step, mass, _ = carry
        moved = transfer(mass)
        total = jnp.sum(moved)
        arrived = (jnp.linalg.norm(moved - mass) < tolerance) | (total <= 0)
        mass = jnp.where(arrived, mass, moved / jnp.where(total > 0, total, 1.0))
        return step + 1, mass, arrived

    _, mass, _ = jax.lax.while_loop(unfinished, walk, (jnp.int32(0), start, jnp.bool_(False)))
    return mass


def _uniform(nodes: Nodes) -> Float[Array, " n"]:
    real = nodes.mask.astype(jnp.float32)
    return real / jnp.maximum(jnp.sum(real), 1.0)


def _solve(
    nodes: Nodes,
    multiply: Callable[[Float[Array, " n"]], Float[Array, " n"]],
    solver: Solver,
    num_steps: int | Int[Array, ""],
    tolerance: float,
) -> Float[Array, " n"]:
    """Return M of one image, [n], given x -> D' x."""
    uniform = _uniform(nodes)
    degree = multiply(nodes.mask.astype(jnp.float32))  # Σ_b D'_ab = Σ_a D'_ab
    total = jnp.sum(degree)
    if solver == "stationary":
        return jnp.where(total > 0, degree / jnp.where(total > 0, total, 1.0), uniform)
    share = jnp.where(degree > 0, 1.0 / jnp.where(degree > 0, degree, 1.0), 0.0)
    return random_walk(  # D x = D' (x / Σ_a D'_ab): the columns of D sum to 1
        lambda mass: multiply(mass * share), uniform, num_steps=num_steps, tolerance=tolerance
    )


def _dense(
    nodes: Nodes, epsilon: Float[Array, ""]
) -> Callable[[Float[Array, " n"]], Float[Array, " n"]]:
    """Return x -> D' x with the whole of D' in memory."""
    matrix = dissimilarity(nodes, nodes, epsilon)  # [n, n]
    return lambda x: jnp.matmul(matrix, x, precision=EXACT)


def _blocked(
    nodes: Nodes, epsilon: Float[Array, ""], block: int
) -> Callable[[Float[Array, " n"]], Float[Array, " n"]]:
    """Return x -> D' x with D' computed in blocks of rows."""
    count = nodes.mask.shape[0]
    block = min(block, count)
    starts = jnp.minimum(jnp.arange(0, count, block), count - block)  # the last block overlaps

    def multiply(x: Float[Array, " n"]) -> Float[Array, " n"]:
        def rows(start: Int[Array, ""]) -> Float[Array, " m"]:
            chosen = jax.tree.map(
                lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, block), nodes
            )
            return jnp.matmul(dissimilarity(nodes, chosen, epsilon), x, precision=EXACT)

        values = jax.lax.map(rows, starts)  # [blocks, block]
        index = starts[:, None] + jnp.arange(block)[None, :]
        return jnp.zeros(count).at[index.reshape(-1)].set(values.reshape(-1))

    return multiply


def _check(solver: str, epsilon_rule: str, epsilon_factor: float, block_nodes: int | None) -> None:
    """Raise `ConfigError` for invalid options."""
    for name, value, allowed in (
        ("solver", solver, get_args(Solver)),
        ("epsilon_rule", epsilon_rule, get_args(EpsilonRule)),
    ):
        if value not in allowed:
            raise ConfigError(f"{name} is {value!r}; allowed are {', '.join(allowed)}")
    if epsilon_factor <= 0:
        raise ConfigError(f"epsilon_factor is {epsilon_factor}; it must be > 0 (0.15 in the paper)")
    if block_nodes is not None and block_nodes < 1:
        raise ConfigError(f"block_nodes is {block_nodes}; it must be at least 1, or None")
