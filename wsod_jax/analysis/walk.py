"""The random walk that makes a proposal map, step by step, in single images.

Where something is drawn, `pixels` is the original image and the result the figure, both [H, W, 3] uint8 RGB.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from wsod_jax import viz
from wsod_jax.data.records import ImageSet
from wsod_jax.evaluation.report import markdown_table
from wsod_jax.methods.spn import Spn
from wsod_jax.ops.cam import Resizing, resize_map
from wsod_jax.ops.soft_proposal import soft_proposals
from wsod_jax.runs.predictor import Predictor, check_classes
from wsod_jax.types import Batch, Params

FOLLOWED = 100  # steps: enough to see whether a walk settles


@dataclasses.dataclass(frozen=True)
class Walk:
    """The walk over one image's cells, never ended by its tolerance.

    Attributes:
      maps: [k + 1, h, w] float32, M after 0 (uniform) to k steps, each summing to 1.
      stationary: [h, w] float32, what the walk would converge to if it did.
    """

    maps: np.ndarray
    stationary: np.ndarray

    @property
    def moved(self) -> np.ndarray:
        """[k] float64, how far each step moves the map: ‖D M − M‖₂."""
        steps = np.diff(self.maps.astype(np.float64), axis=0)
        return np.sqrt(np.sum(steps**2, axis=(1, 2)))

    @property
    def apart(self) -> np.ndarray:
        """[k + 1] float64, the largest difference to the stationary map, as a share of that map's maximum."""
        apart = np.abs(self.maps.astype(np.float64) - self.stationary).max(axis=(1, 2), initial=0.0)
        return apart / max(float(self.stationary.max(initial=0.0)), 1e-12)

    def settled(self, tolerance: float) -> int | None:
        """Return how many steps a walk with this tolerance takes; `None` if it is not done after k."""
        small = np.flatnonzero(self.moved < tolerance)
        return int(small[0]) if len(small) else None


def follow_walks(
    predictor: Predictor, images: ImageSet, positions: Sequence[int], num_steps: int = FOLLOWED
) -> dict[int, Walk]:
    """Follow the walks over some images, each seen once, at the first scale.

    Args:
      predictor: of a method with a proposal map; how its own map is found does not matter.
      images: a set of the detector's classes.
      positions: of the images, in the set.
      num_steps: k, how far.

    Returns:
      Position -> walk; images that cannot be read are left out.

    Raises:
      DataError: for other classes.

    Cost: k² / 2 products with D per image: every map is walked to from the start, all in one program.
    """
    check_classes(images, predictor.class_names)
    method = predictor.method
    follow = jax.jit(lambda params, batch: _follow(method, params, batch, num_steps))
    views = predictor.one_view().views(images.select(positions), None)
    found = {}
    for batch in views:
        walked, stationary, size = map(np.asarray, follow(predictor.params, batch))
        for row in np.flatnonzero(batch.image_mask):
            height, width = size[row]
            position = positions[int(batch.image_index[row])]
            found[position] = Walk(
                walked[:, row, :height, :width], stationary[row, :height, :width]
            )
    return found


def _follow(
    method: Spn, params: Params, batch: Batch, num_steps: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return M after 0 to k steps [k + 1, b, h, w], the stationary map [b, h, w] and the valid cells [b, 2]."""
    maps = method.coupled_features(params, batch)
    module = method.soft_proposal
    kernel = dict(
        epsilon_rule=module.epsilon_rule,
        epsilon_factor=module.epsilon_factor,
        block_nodes=module.block_nodes,
    )

    def after(count: jax.Array) -> jax.Array:
        return soft_proposals(
            maps.features, maps.size, solver="walk", num_steps=count, tolerance=0.0, **kernel
        )

    walked = jax.vmap(after)(jnp.arange(num_steps + 1))
    stationary = soft_proposals(maps.features, maps.size, solver="stationary", **kernel)
    return walked, stationary, maps.size


def draw_walk(
    pixels: np.ndarray, walk: Walk, steps: Sequence[int], upsampling: Resizing
) -> np.ndarray:
    """Draw the map after some steps of its walk, and the stationary map.

    All maps share one scale of colors, from 0 to the highest value among them.

    Args:
      walk: over its cells.
      steps: after how many, each at most k.
      upsampling: from cells to pixels, see `ops.cam.resize_map`.

    Returns:
      [H', W', 3] uint8 RGB, the image first. Captions tell maxima in multiples of the uniform map.

    Source: Zhu et al. 2017 (SPN), figure 4.
    """
    chosen = {_after(count): walk.maps[count] for count in steps}
    chosen["stationary"] = walk.stationary
    highest = max(float(values.max(initial=0.0)) for values in chosen.values())
    cells, captions = [pixels], ["image"]
    for title, values in chosen.items():
        resized = resize_map(values, *pixels.shape[:2], upsampling)
        cells.append(viz.draw_objectness(pixels, resized, highest=highest))
        captions.append(f"{title}: {values.max(initial=0.0) * values.size:.1f} × uniform")
    columns = len(cells) if len(cells) <= 6 else -(-len(cells) // 2)
    return viz.contact_sheet(cells, captions=captions, columns=columns, cell_px=400)


def _after(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"


def walk_table(walks: Mapping[str, Walk], *, num_steps: int, tolerance: float) -> str:
    """Return image -> walk as a Markdown table: how near the stationary map S it gets, and when it settles.

    The last row holds the medians, where a walk that does not settle counts as longer than all that do.

    Args:
      walks: all equally long, at least `num_steps`.
      num_steps: after how many steps the walk is compared with the stationary map.
      tolerance: of ‖D M − M‖₂, below which it has settled.
    """
    apart = [walk.apart[num_steps] for walk in walks.values()]
    settled = [walk.settled(tolerance) for walk in walks.values()]
    lengths = [np.inf if count is None else count for count in settled]
    head = [
        "image",
        f"max abs(M - S) / max(S) after {num_steps} steps",
        f"steps until the next moves M by less than {tolerance:g}",
    ]
    rows = []
    longest = max(len(walk.moved) for walk in walks.values())
    names = [*walks, "median"]
    for name, share, count in zip(
        names, [*apart, np.median(apart)], [*lengths, np.median(lengths)], strict=True
    ):
        text = f"{count:g}" if np.isfinite(count) else f"more than {longest - 1}"
        rows.append([name, f"{100 * share:.2f} %", text])
    return markdown_table(head, rows)
