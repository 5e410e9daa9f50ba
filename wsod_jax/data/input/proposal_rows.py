"""From the boxes of a proposals file to the rows of a batch: rules, duplicates, views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np

from wsod_jax.data.input.transforms import View, place_boxes
from wsod_jax.errors import ConfigError
from wsod_jax.ops.boxes import box_area, clip_boxes
from wsod_jax.options import BELOW_ONE, COUNT, NOT_NEGATIVE, POSITIVE


@dataclass(frozen=True)
class ProposalRules:
    """Which of an image's proposals are used, and how they are padded.

    Attributes:
      max_proposals: R, the static number of rows. Of more proposals the R best-scored are kept, in file order, or the
        first R if there are no scores.
      dedup_stride: proposals whose edges agree after rounding edge / dedup_stride are merged into the first of them;
        8 in OICR. `None` merges nothing.
      min_side_px: boxes with a shorter side are dropped, in pixels of the original image.
      min_side: the same as a fraction of the original image's shorter side.
    """

    max_proposals: Annotated[int, COUNT]
    dedup_stride: Annotated[float | None, POSITIVE] = 8.0
    min_side_px: Annotated[float, NOT_NEGATIVE] = 0.0
    min_side: Annotated[float, BELOW_ONE] = 0.0

    def __post_init__(self):
        if self.max_proposals < 1:
            raise ConfigError(f"max_proposals={self.max_proposals}; it must be at least 1.")
        if self.dedup_stride is not None and self.dedup_stride <= 0:
            raise ConfigError(
                f"dedup_stride={self.dedup_stride}; it must be above 0, or None for off."
            )
        if self.min_side_px < 0:
            raise ConfigError(f"min_side_px={self.min_side_px}; it must be at least 0 (0: off).")
        if not 0 <= self.min_side < 1:
            raise ConfigError(f"min_side={self.min_side}; it must be in [0, 1) (0: off).")


@dataclass(frozen=True)
class CleanProposals:
    """Usable proposals, in pixels of the original image, and counts of changes.

    Attributes:
      boxes: [n, 4] float32, n <= max_proposals, inside the image, with area.
      scores: [n] float32, or `None`.
      clipped: number of boxes that extended outside the image.
      dropped: number of boxes without area inside the image, or with a side below the minimum.
      capped: number of boxes beyond max_proposals.
    """

    boxes: np.ndarray
    scores: np.ndarray | None
    clipped: int
    dropped: int
    capped: int


def clean_proposals(
    boxes: np.ndarray,
    scores: np.ndarray | None,
    image_size: tuple[int, int],
    rules: ProposalRules,
) -> CleanProposals:
    """Clip proposals to their image, drop unusable ones, and keep at most R of the rest.

    The result depends only on the original image, so row m is the same proposal in every view.

    Args:
      boxes: [n, 4] float32 xyxy in pixels of the original image.
      scores: [n] objectness, or `None`.
      image_size: (height, width) of the original image.
      rules: for dropping and capping.

    Returns:
      The proposals kept, in their order, and counts.

    Ties: of equal scores at the cap the earlier row is kept.
    """
    height, width = image_size
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    scores = None if scores is None else np.asarray(scores, np.float32)
    inside = clip_boxes(boxes, height, width)
    least = max(rules.min_side_px, rules.min_side * min(image_size))
    sides = inside[:, 2:] - inside[:, :2]
    usable = (box_area(inside) > 0) & (sides >= least).all(axis=1)
    keep = np.flatnonzero(usable)
    clipped = int((inside[keep] != boxes[keep]).any(axis=1).sum())
    capped = max(len(keep) - rules.max_proposals, 0)
    if capped and scores is not None:
        best = np.argsort(-scores[keep], kind="stable")[: rules.max_proposals]
        keep = keep[np.sort(best)]
    keep = keep[: rules.max_proposals]
    return CleanProposals(
        boxes=inside[keep],
        scores=None if scores is None else scores[keep],
        clipped=clipped,
        dropped=len(boxes) - int(usable.sum()),
        capped=capped,
    )


def merge_duplicates(boxes: np.ndarray, stride: float) -> np.ndarray:
    """Find the proposals that a feature map of this stride cannot distinguish.

    Two boxes are the same if round(edge / stride) agrees for all four edges, rounding half away from
    zero.

    Args:
      boxes: [n, 4] float32 xyxy in network pixels, >= 0.
      stride: in network pixels.

    Returns:
      [n] int32, for each box the index of the first box that is the same.

    Source: released OICR code, which hashes the rounded boxes the same way.
    """
    cells = np.floor(np.asarray(boxes, np.float32) / np.float32(stride) + np.float32(0.5))
    cells = cells.astype(np.int64)
    base = np.int64(cells.max(initial=0) + 1)
    if base > 50_000:  # base ** 4 would overflow 64 bits
        _, first, group = np.unique(cells, axis=0, return_index=True, return_inverse=True)
    else:
        keys = ((cells[:, 0] * base + cells[:, 1]) * base + cells[:, 2]) * base + cells[:, 3]
        _, first, group = np.unique(keys, return_index=True, return_inverse=True)
    return first[group.reshape(-1)].astype(np.int32)


@dataclass(frozen=True)
class PlacedProposals:
    """One image's proposals on one view, padded to R rows; the first four fields are those of `types.Batch`.

    Attributes:
      boxes: [r, 4] float32, 0 in padding.
      mask: [r] bool, False in padding, for merged proposals, and for those outside the view.
      scores: [r] float32, or `None`.
      representative: [r] int32.
      hidden: number of proposals outside the view.
    """

    boxes: np.ndarray
    mask: np.ndarray
    scores: np.ndarray | None
    representative: np.ndarray
    hidden: int


def place_proposals(
    proposals: CleanProposals, image_size: tuple[int, int], view: View, rules: ProposalRules
) -> PlacedProposals:
    """Map clean proposals to a view, merge duplicates, and pad to R rows.

    Merged proposals keep their row and their box but are masked; `representative` is the row whose scores they share.
    Proposals without area in the view's window keep their row too and are masked; the others are merged as the window
    shows them, so two boxes that differ only outside it become one.

    Args:
      proposals: of the original image.
      image_size: the original (height, width).
      view: of the image.
      rules: R and the stride of merging.

    Returns:
      Arrays of R rows.
    """
    count, rows = len(proposals.boxes), rules.max_proposals
    boxes = np.zeros((rows, 4), np.float32)
    boxes[:count] = place_boxes(proposals.boxes, image_size, view)
    shown = np.flatnonzero(box_area(boxes) > 0)  # neither padding nor outside the view
    representative = np.arange(rows, dtype=np.int32)
    if rules.dedup_stride is not None:
        representative[shown] = shown[merge_duplicates(boxes[shown], rules.dedup_stride)]
    mask = np.zeros(rows, bool)
    mask[shown] = representative[shown] == shown
    scores = None
    if proposals.scores is not None:
        scores = np.zeros(rows, np.float32)
        scores[:count] = proposals.scores
    return PlacedProposals(boxes, mask, scores, representative, count - len(shown))
