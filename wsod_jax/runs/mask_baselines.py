"""Masks made of detected boxes alone, the baselines of methods that predict masks: BB, ELL and MCG of WS-JDS's Tab. 5.

They belong to any detections, those of a run or of a file, and are measured as predicted masks are.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from wsod_jax.data.proposals.mask_set import MaskSet, open_masks
from wsod_jax.data.proposals.proposal_set import check_proposals
from wsod_jax.data.records import ImageSet
from wsod_jax.ops.boxes import pairwise_iou
from wsod_jax.ops.masks import fill_boxes, fill_ellipses
from wsod_jax.types import ImageResult, Mask

_EMPTY = Mask(0, 0, np.zeros((0, 0), bool))


@dataclass(frozen=True)
class MaskBaseline:
    """How masks are made of boxes.

    Attributes:
      shape: "box", all of the box; "ellipse", the largest one inside it; "proposal", the mask of the proposal whose
        box has the highest IoU with it.
      mask_set: masks of proposals, of "proposal" alone.

    Source: Shen et al. 2019 (WS-JDS), section 4.4 and Tab. 5.
    """

    shape: Literal["box", "ellipse", "proposal"]
    mask_set: MaskSet | None = None

    @classmethod
    def open(cls, name: str) -> MaskBaseline:
        """Return what the command line names: "box", "ellipse", or a file of masks of proposals.

        Raises:
          DataError: the file cannot be read, or is not of the proposals next to it.
        """
        return cls(name) if name in ("box", "ellipse") else cls("proposal", open_masks(name))

    @property
    def description(self) -> str:
        """What the masks are, for a report."""
        if self.shape == "proposal":
            file = f"{self.mask_set.origin} ({self.mask_set.generator})"
            return f"of the proposal whose box has the highest IoU with the detected box, of {file}"
        what = (
            "whole detected box" if self.shape == "box" else "largest ellipse in the detected box"
        )
        return f"the {what}"

    def check(self, images: ImageSet) -> None:
        """Raise `DataError` unless there are proposals for all of these images, at their sizes."""
        if self.mask_set is not None:
            check_proposals(self.mask_set.proposals, images)

    def masks_of(self, result: ImageResult, image_id: str) -> tuple[Mask, ...]:
        """Return a mask for each box of a result.

        Raises:
          DataError: the mask of a proposal is damaged.
        Ties: the lowest row of the proposals. A box that no proposal overlaps gets a mask without pixels.
        """
        if self.shape == "box":
            return fill_boxes(result.boxes, result.size)
        if self.shape == "ellipse":
            return fill_ellipses(result.boxes, result.size)
        return retrieve_masks(result.boxes, self.mask_set, image_id)


def retrieve_masks(boxes: np.ndarray, mask_set: MaskSet, image_id: str) -> tuple[Mask, ...]:
    """Return the masks of the proposals whose boxes have the highest IoU with `boxes`; see `MaskBaseline.masks_of`."""
    proposals = mask_set.proposals.get(image_id).astype(np.float64)
    if not len(proposals) or not len(boxes):
        return (_EMPTY,) * len(boxes)
    iou = pairwise_iou(np.asarray(boxes, np.float64), proposals)
    best = iou.argmax(axis=1)
    rows, which = np.unique(best, return_inverse=True)
    masks = mask_set.masks(image_id, rows.tolist())
    overlaps = iou.max(axis=1) > 0
    return tuple(masks[i] if some else _EMPTY for i, some in zip(which, overlaps, strict=True))


class Masked:
    """Results whose masks are replaced; iterated as often as needed, no mask is kept."""

    def __init__(
        self, results: Iterable[ImageResult], baseline: MaskBaseline, image_ids: Sequence[str]
    ):
        """Wrap results of images with these ids."""
        self._results, self._baseline, self._image_ids = results, baseline, image_ids

    def __iter__(self) -> Iterator[ImageResult]:
        for result in self._results:
            if result.boxes is not None:
                image_id = self._image_ids[result.image_index]
                masks = self._baseline.masks_of(result, image_id)
                result = dataclasses.replace(result, masks=masks)
            yield result


def masks_notes(masks: MaskBaseline | None, replaced: str | None) -> list[str]:
    """Say which masks are measured where they are made of boxes, and which ones they replace, if any."""
    if masks is None:
        return []
    place = "" if replaced is None else f", in place of those {replaced}"
    return [f"the mask of a detection is {masks.description}{place}"]
