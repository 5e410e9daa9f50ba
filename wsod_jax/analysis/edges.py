"""Where the weights of SPN's graph lie: between cells on objects, across outlines, or within the background.

The stationary proposal map is the row sums of D', divided by their sum, and D' is symmetric. So its energy on cells is
the share of D' between cells on objects plus half of what crosses outlines: a border counts for both of its sides.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import jax
import numpy as np

from wsod_jax.evaluation.report import markdown_table
from wsod_jax.ops.soft_proposal import dissimilarity, graph_nodes, kernel_epsilon
from wsod_jax.runs.annotated_images import AnnotatedImages
from wsod_jax.runs.predictor import Predictor


@dataclasses.dataclass(frozen=True)
class EdgeShares:
    """Shares of the sum of D' in one image; together 1.

    Attributes:
      inside: between cells on objects.
      across: between a cell on an object and one that is on none, both directions.
      outside: between cells that are on none.
    """

    inside: float
    across: float
    outside: float

    @property
    def energy(self) -> float:
        """Share of the stationary map on cells on objects."""
        return self.inside + self.across / 2


def edge_shares(
    predictor: Predictor, split: AnnotatedImages, positions: Sequence[int]
) -> Iterator[EdgeShares]:
    """Yield the shares of some images that have objects, each seen once, at the first scale.

    Args:
      predictor: of a method with a proposal map.
      split: with annotated objects.
      positions: of the images, in the split. Left out are unreadable ones, and those whose D' is 0.
    """
    module = predictor.method.soft_proposal
    features = jax.jit(predictor.method.coupled_features)
    for batch in predictor.one_view().views(split.images.select(positions), None):
        maps = features(predictor.params, batch)
        for row in np.flatnonzero(batch.image_mask):
            image = positions[int(batch.image_index[row])]
            height, width = np.asarray(maps.size[row])
            nodes = graph_nodes(maps.features[row, :height, :width], maps.size[row])
            epsilon = kernel_epsilon(maps.size[row], module.epsilon_rule, module.epsilon_factor)
            weights = np.asarray(dissimilarity(nodes, nodes, epsilon), np.float64)
            on = cells_on_objects(
                split.truth.of_image(image).boxes, split.sizes[image], (height, width)
            ).reshape(-1)
            if weights.sum() > 0 and on.any():
                inside, outside = weights[on][:, on].sum(), weights[~on][:, ~on].sum()
                shares = np.array([inside, weights.sum() - inside - outside, outside])
                yield EdgeShares(*(shares / weights.sum()).tolist())


def edge_table(found: Mapping[str, Sequence[EdgeShares]]) -> str:
    """Return run -> shares of its images as a Markdown table of their means in percent; no images leave cells empty."""
    parts = ("inside", "across", "outside", "energy")
    head = ["run", "images", "on objects", "across outlines", "within the background", "energy"]
    rows = []
    for name, shares in found.items():
        means = [np.mean([getattr(one, part) for one in shares]) for part in parts if shares]
        cells = [f"{100 * mean:.1f} %" for mean in means] or [""] * len(parts)
        rows.append([name, str(len(shares)), *cells])
    return markdown_table(head, rows)


def cells_on_objects(boxes: np.ndarray, size: tuple[int, int], grid: tuple[int, int]) -> np.ndarray:
    """Return [h, w] bool, the cells whose centers, with corners aligned, lie in one of the boxes [n, 4]."""
    y, x = (
        np.linspace(0.5, side - 0.5, count) if count > 1 else np.array([side / 2])
        for side, count in zip(size, grid, strict=True)
    )
    on = np.zeros(grid, bool)
    for x1, y1, x2, y2 in boxes:
        on |= ((y >= y1) & (y < y2))[:, None] & ((x >= x1) & (x < x2))[None, :]
    return on
